"""Servers on more than one machine."""
