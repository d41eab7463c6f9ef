"""Drops images that a vision model takes for one seen before."""
