"""Benchmarks: one command for each claim, `python -m bench NAME --json`."""
