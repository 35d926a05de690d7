"""Every table and figure of the paper from finished runs: ``python -m figures --runs RUNS --out OUT``."""
