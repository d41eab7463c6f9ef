"""Drops images that are too dark or too bright."""
