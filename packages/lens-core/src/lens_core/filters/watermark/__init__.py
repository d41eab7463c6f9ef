"""Drops images with a watermark."""
