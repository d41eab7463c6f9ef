"""Stages of lens-serve."""
