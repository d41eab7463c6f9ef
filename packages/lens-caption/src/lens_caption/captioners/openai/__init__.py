"""Captions from any vision model behind an OpenAI-style endpoint."""
