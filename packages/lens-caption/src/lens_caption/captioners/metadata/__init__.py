"""Captions that the images bring with them."""
