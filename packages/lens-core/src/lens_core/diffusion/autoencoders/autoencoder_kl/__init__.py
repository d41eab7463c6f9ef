"""Autoencoders with a scale and a shift."""
