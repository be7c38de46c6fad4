"""Evaluators, what they evaluate against, and what becomes of their results."""
