"""The stage that brings images in."""
