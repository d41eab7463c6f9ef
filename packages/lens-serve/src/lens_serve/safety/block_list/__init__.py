"""Refuses prompts that have certain words in them."""
