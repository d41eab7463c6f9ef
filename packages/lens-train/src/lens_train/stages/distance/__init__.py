"""Measure how far models' pictures are from real ones."""
