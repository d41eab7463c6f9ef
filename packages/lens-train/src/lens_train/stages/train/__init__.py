"""Train a model."""
