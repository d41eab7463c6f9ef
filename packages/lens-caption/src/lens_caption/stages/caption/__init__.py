"""The stage that adds a caption layer."""
