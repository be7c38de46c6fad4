"""Processes, signals and the output folder of a run."""
