"""Completes short scene prompts by rule."""
