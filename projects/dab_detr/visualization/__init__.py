"""Pictures of predictions and of a training's course."""
