"""Lens serve: an image server over Lens models. This release holds its place; the server is not written yet."""

__all__: list[str] = []
