"""Drops images without sharp edges."""
