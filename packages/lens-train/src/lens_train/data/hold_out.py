"""Which images are held out of training: by a lot on each image's content, so that they stay so as a set grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lens_core.errors import ConfigError
from lens_train.planning.permutation import key_of, lots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_train.watch.config import ValidationConfig

__all__ = ["held_out"]


def held_out(keys: Sequence[str], config: ValidationConfig, seed: int) -> set[str]:
    """The keys that are held out: those with a lot below the share, the lowest first where there are too many.

    Args:
        keys: sha256 (hex) of every image.
        config: how many.
        seed: the run's seed.

    Raises:
        ConfigError: none are, or none are left to train on.
    """
    different = sorted(set(keys))
    own_lots = lots(np.array([int(key[:16], 16) for key in different], dtype=np.uint64), key_of("validation", seed))
    lowest = np.argsort(own_lots, kind="stable")[: config.max_samples]
    held = {different[place] for place in lowest if own_lots[place] < config.share}
    if not held or len(held) == len(different):
        raise ConfigError(
            f"{config.share:g} of {len(different)} images holds out {len(held)}; choose a share that holds out some "
            "and leaves some to train on",
            key="watch.validation.share",
        )
    return held
