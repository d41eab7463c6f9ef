"""Refuses pictures by an image classifier that the user brings."""
