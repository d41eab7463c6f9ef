"""Prompts rewritten by a language model in a folder on this machine."""
