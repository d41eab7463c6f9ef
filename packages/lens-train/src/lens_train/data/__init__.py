"""Captioned images, and the batches cut from them."""
