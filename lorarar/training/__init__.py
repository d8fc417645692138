"""Everything that takes gradient steps: adapters, coefficients, the hypernetwork."""
