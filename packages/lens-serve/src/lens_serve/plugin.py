"""The door of lens-serve. It offers nothing yet."""

__all__: list[str] = []
