"""Sizes of images: those that the released checkpoints were made for, and how people write them.

Sizes are (height, width) in pixels; ratios are written width first, "16:9".
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from lens_core.errors import ConfigError

__all__ = ["BASES", "RATIOS", "RESOLUTIONS", "closest_size", "parse_size"]

_PORTRAIT = {
    1024: {"1:2": (1472, 736), "9:16": (1376, 768), "2:3": (1248, 832), "3:4": (1152, 864), "1:1": (1024, 1024)},
    1440: {"1:2": (2080, 1040), "9:16": (1936, 1088), "2:3": (1760, 1168), "3:4": (1616, 1216), "1:1": (1440, 1440)},
}

RESOLUTIONS: dict[int, dict[str, tuple[int, int]]] = {
    base: sizes | {":".join(reversed(ratio.split(":"))): (w, h) for ratio, (h, w) in reversed(sizes.items())}
    for base, sizes in _PORTRAIT.items()
}
"""(height, width) by base and ratio. Every size of a base has about as many pixels as its square."""
BASES = tuple(RESOLUTIONS)
RATIOS = tuple(RESOLUTIONS[1024])
"""From the tallest to the widest."""

_SIZE = re.compile(r"([0-9]{1,5})\s*[x×]\s*([0-9]{1,5})")
_RATIO = re.compile(r"([0-9]{1,5})\s*:\s*([0-9]{1,5})(?:\s*@\s*([0-9]{1,5}))?")


def closest_size(ratio: float, base: int = 1024) -> tuple[int, int]:
    """The (height, width) of a base whose shape is closest to `ratio`, width over height.

    Raises:
        ConfigError: an unknown base, or a ratio that is not a positive number.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise ConfigError(f"an aspect ratio is a positive number, not {ratio}")
    # By the factor between them: 1:2 is as far from the square as 2:1.
    return min(_of_base(base).values(), key=lambda size: abs(math.log(ratio * size[0] / size[1])))


def parse_size(text: str, *, base: int = 1024, multiple: int = 16) -> tuple[int, int]:
    """A size as people write it, to (height, width).

    Args:
        text: "1024x768", width first; or a ratio, "16:9", of the table; or a ratio of another base, "16:9@1440".
        base: of a ratio that names none.
        multiple: what height and width must be multiples of: the stride of the autoencoder.

    Raises:
        ConfigError: it is none of these, or no multiple.
    """
    plain = text.strip().lower()
    if match := _RATIO.fullmatch(plain):
        wide, tall = int(match[1]), int(match[2])
        sizes = {Fraction(*map(int, ratio.split(":"))): size for ratio, size in _of_base(int(match[3] or base)).items()}
        if not tall or Fraction(wide, tall) not in sizes:
            raise ConfigError(
                f"the size {text!r} is not one of the ratios {', '.join(RATIOS)}; other shapes are written "
                "WIDTHxHEIGHT, such as 1024x768"
            )
        height, width = sizes[Fraction(wide, tall)]
    elif match := _SIZE.fullmatch(plain):
        width, height = int(match[1]), int(match[2])
    else:
        raise ConfigError(f"the size {text!r} is neither WIDTHxHEIGHT, such as 1024x768, nor a ratio, such as 16:9")
    if height % multiple or width % multiple or not height or not width:
        near = "x".join(str(max(1, round(side / multiple)) * multiple) for side in (width, height))
        raise ConfigError(f"the size {text!r}: width and height must be multiples of {multiple}, such as {near}")
    return height, width


def _of_base(base: int) -> dict[str, tuple[int, int]]:
    if base not in RESOLUTIONS:
        raise ConfigError(f"there is no table of sizes for the base {base}; the bases are {', '.join(map(str, BASES))}")
    return RESOLUTIONS[base]
