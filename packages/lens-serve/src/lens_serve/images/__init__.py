"""Pictures on their way in and out: bounded decoding of uploads, encoders, signatures, and where images are kept."""

from __future__ import annotations

__all__: list[str] = []
