"""Captions from a Hugging Face image-text-to-text model on this machine."""
