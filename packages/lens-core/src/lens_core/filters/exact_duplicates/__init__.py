"""Drops images whose pixels were seen before."""
