"""The ways to buy captions: at once (sync, flex), or within a day (batch)."""
