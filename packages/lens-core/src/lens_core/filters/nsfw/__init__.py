"""Drops images that a classifier finds not safe for work."""
