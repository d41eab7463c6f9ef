"""Built-in sources of images."""
