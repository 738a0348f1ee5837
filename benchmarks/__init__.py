"""Modules that time two ways of doing a thing in turn and print the ratio: `python -m benchmarks.NAME`."""
