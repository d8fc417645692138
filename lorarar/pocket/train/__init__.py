"""Training of the miniature's base, recogniser and judges, which are shipped."""
