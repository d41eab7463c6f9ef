"""At which size each image is trained, from its own and from what the config says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.errors import ConfigError
from lens_train.planning.config import SizesConfig
from lens_train.planning.sizes import SizeRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_train.data.config import ImageSize

__all__ = ["size_rule"]


def size_rule(image_size: ImageSize | None, *, stride: int, seed: int) -> Callable[[int, int, str], tuple[int, int]]:
    """From (height, width, key) of an image to the (height, width) that it is trained at.

    Args:
        image_size: as configured.
        stride: what height and width must be multiples of.
        seed: the run's seed, for the lot among several bases.

    Raises:
        ConfigError: a size does not fit; the function raises it too, where images keep their own size.
    """
    if isinstance(image_size, SizesConfig):
        return SizeRule(image_size.bases, multiple=stride, seed=seed)
    if image_size is None:
        return lambda height, width, key: _fitting(height, width, stride)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    size = _fitting(height, width, stride)
    return lambda *_: size


def _fitting(height: int, width: int, stride: int) -> tuple[int, int]:
    if height % stride or width % stride:
        raise ConfigError(f"image_size: {width}x{height} is not a multiple of {stride}, the autoencoder's stride")
    return height, width
