"""The HTTP side of the server: OpenAI's Images API, and what it answers when something is wrong."""

from __future__ import annotations

__all__: list[str] = []
