"""Drops images with too few pixels."""
