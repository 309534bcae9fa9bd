"""Benchmarks of the mask search: `make bench`."""
