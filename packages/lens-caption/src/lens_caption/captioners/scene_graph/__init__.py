"""Captions by rule from exact scene graphs."""
