"""Encode images beforehand."""
