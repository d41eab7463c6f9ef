"""Which images are held out of training: by a lot on each image's content, so that they stay so as a set grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lens_core.errors import ConfigError
from lens_train.planning.permutation import key_of, lots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lens_train.watch.config import ValidationConfig

__all__ = ["held_out"]


def held_out(words_N: NDArray[np.uint64], config: ValidationConfig, seed: int) -> NDArray[np.bool_]:
    """Whether each image is: those with a lot below the share, the lowest first where there are too many.

    Args:
        words_N: the first eight bytes of every image's key.
        config: how many.
        seed: the run's seed.

    Raises:
        ConfigError: none are, or none are left to train on.
    """
    lots_N = lots(words_N, key_of("validation", seed))
    held_N: NDArray[np.bool_] = lots_N < config.share
    if held_N.sum() > config.max_samples:
        held_N &= lots_N <= np.partition(lots_N, config.max_samples - 1)[config.max_samples - 1]
    if not held_N.any() or held_N.all():
        raise ConfigError(
            f"{config.share:g} of {len(held_N)} images holds out {held_N.sum()}; choose a share that holds out some "
            "and leaves some to train on",
            key="watch.validation.share",
        )
    return held_N
