"""Corruptions: what a camera, a sensor or a careless data pipeline does to inputs; one file a family."""
