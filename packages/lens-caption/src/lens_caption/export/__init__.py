"""Images with their captions, written for other tools."""
