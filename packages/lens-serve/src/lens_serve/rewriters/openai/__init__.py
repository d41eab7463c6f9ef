"""Prompts rewritten by a language model behind an OpenAI-style endpoint."""
