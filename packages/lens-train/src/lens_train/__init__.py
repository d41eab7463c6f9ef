"""Lens train: train a compact text-to-image model, draw with it, measure it, and report."""

__all__: list[str] = []
