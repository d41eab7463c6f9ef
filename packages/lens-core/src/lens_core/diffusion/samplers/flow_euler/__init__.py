"""Euler steps along the flow."""
