"""Evaluators, ground truth, and results."""
