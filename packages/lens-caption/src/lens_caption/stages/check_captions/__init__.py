"""The stage that puts a caption layer through the gates."""
