"""Questions to the benchmark, one file each: which settings to compare; `python -m experiments` lists them."""
