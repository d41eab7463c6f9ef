"""The stage that has captions corrected by a second look at their images."""
