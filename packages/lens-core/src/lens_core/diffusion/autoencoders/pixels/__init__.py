"""Pixels as they are, cut into patches."""
