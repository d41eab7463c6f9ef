"""Lens caption: dense captions for many images, from rules, from an API, or from a server of your own."""

__all__: list[str] = []
