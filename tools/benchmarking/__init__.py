"""Measurements of time and memory beside other implementations, for tools/benchmark.py."""
