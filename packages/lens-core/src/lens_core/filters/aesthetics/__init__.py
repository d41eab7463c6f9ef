"""Drops images that a model finds ugly."""
