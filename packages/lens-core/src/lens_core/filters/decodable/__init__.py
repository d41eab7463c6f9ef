"""Drops images that cannot be decoded completely."""
