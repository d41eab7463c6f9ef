"""Datasets that Hugging Face datasets has saved to disk."""
