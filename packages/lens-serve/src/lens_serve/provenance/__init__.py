"""How a picture was made: the receipt that it carries, and the check that it tells the truth."""

from __future__ import annotations

__all__: list[str] = []
