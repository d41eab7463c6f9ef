"""Draw a gallery."""
