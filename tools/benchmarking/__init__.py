"""Time and memory side by side with others; the work of tools/benchmark.py."""
