"""Drops images that look like one seen before."""
