"""The stages of lens-train."""
