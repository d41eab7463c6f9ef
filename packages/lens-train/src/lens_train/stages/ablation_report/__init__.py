"""Pages about ablations."""
