"""Measure how well models follow prompts."""
