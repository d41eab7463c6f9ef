"""Lens serve: the OpenAI Images API over Lens models, scheduled by the step."""

__all__: list[str] = []
