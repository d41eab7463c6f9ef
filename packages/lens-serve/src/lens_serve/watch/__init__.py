"""What is told about a server: metrics, a line per request, and traces. None of them tells prompts or keys."""

from __future__ import annotations

__all__: list[str] = []
