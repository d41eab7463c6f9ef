"""People accept, edit and reject captions; what they say is a layer of its own."""

from __future__ import annotations

__all__ = ["REJECTED"]

REJECTED = "rejected"
"""Status of a caption that a person turned down; like every status but `ok`, it is never trained on."""
