"""Devices and dtypes as a pipeline names them; which they are, `lens_core.diffusion.device` says."""

from __future__ import annotations

from typing import Literal

__all__ = ["DeviceName", "DtypeName"]

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DtypeName = Literal["float32", "bfloat16", "float16"]
