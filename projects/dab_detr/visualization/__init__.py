"""Visualizations of training samples, predictions and training curves."""
