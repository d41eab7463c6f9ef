"""Procedural scenes with exact scene graphs: a world small enough to learn on a laptop and to judge exactly."""
