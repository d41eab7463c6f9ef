"""How far two sets of pictures are apart, by features of each picture: the kernel distance and the Fréchet distance.

    KID      mean k(x, x') + mean k(y, y') - 2 mean k(x, y)   over pairs of different pictures; k(a, b) = (a·b / F + 1)³
    Fréchet  |m - m'|² + tr(C + C' - 2 (C C')^½)              of means m and covariances C

KID (arXiv 1801.01401) is unbiased: its expectation does not depend on how many pictures there are, and is 0 for two
sets of one distribution, so that it may come out below 0. The Fréchet distance (arXiv 1706.08500) grows as pictures get
fewer: it compares only what was measured on as many. Suffixes: N, M pictures, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lens_core.intervals import Z_95

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Features = NDArray[np.float64]

__all__ = ["Distance", "frechet_distance", "kernel_distance"]

_SUBSETS = 200


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance; low and high are the ends of its 95 % interval, None if it has none."""

    value: float
    low: float | None = None
    high: float | None = None


def kernel_distance(x_NF: Features, y_MF: Features, *, seed: int = 0) -> Distance:
    """KID over all pictures, with an interval from subsets.

    Subsets of a quarter of the pictures, drawn without replacement, vary around the whole as the whole varies around
    the truth, but for a factor known from their sizes (D. N. Politis and J. P. Romano, Ann. Statist. 22, 1994). Near 0,
    where the estimate settles faster than that factor says, the interval is too wide rather than too narrow.

    Args:
        x_NF: features of some pictures, at least 8.
        y_MF: features of others, at least 8.
        seed: of the subsets.
    """
    xx, yy, xy = (_kernel(*pair) for pair in ((x_NF, x_NF), (y_MF, y_MF), (x_NF, y_MF)))
    value = _unbiased(xx, yy, xy)
    rng = np.random.default_rng(seed)
    sizes = len(x_NF) // 4, len(y_MF) // 4
    drawn = []
    for _ in range(_SUBSETS):
        n, m = (rng.choice(len(all_), size, replace=False) for all_, size in zip((x_NF, y_MF), sizes, strict=True))
        drawn.append(_unbiased(xx[np.ix_(n, n)], yy[np.ix_(m, m)], xy[np.ix_(n, m)]))
    # Of n pictures a subset of s varies as 1/s - 1/n, and the whole as 1/n.
    share = max(size / len(all_) for all_, size in zip((x_NF, y_MF), sizes, strict=True))
    half = Z_95 * float(np.std(drawn, ddof=1)) * math.sqrt(share / (1 - share))
    return Distance(value=value, low=value - half, high=value + half)


def frechet_distance(x_NF: Features, y_MF: Features) -> Distance:
    """The Fréchet distance of two normal distributions with the sets' means and covariances."""
    means = (x_NF.mean(0), y_MF.mean(0))
    x_RF, y_RF = (
        np.linalg.qr(values - mean).R / math.sqrt(len(values) - 1)
        for values, mean in zip((x_NF, y_MF), means, strict=True)
    )
    # With C = X'X and C' = Y'Y, the trace of (C C')^½ is the sum of the singular values of X Y'.
    common = float(np.linalg.svd(x_RF @ y_RF.T, compute_uv=False).sum())
    apart = float(((means[0] - means[1]) ** 2).sum())
    return Distance(value=max(0.0, apart + float((x_RF**2).sum()) + float((y_RF**2).sum()) - 2 * common))


def _kernel(x_NF: Features, y_MF: Features) -> Features:
    kernel: Features = (x_NF @ y_MF.T / x_NF.shape[1] + 1) ** 3
    return kernel


def _unbiased(xx_NN: Features, yy_MM: Features, xy_NM: Features) -> float:
    """No picture is compared with itself."""
    within = sum(
        float(square.sum() - np.trace(square)) / (len(square) * (len(square) - 1)) for square in (xx_NN, yy_MM)
    )
    return within - 2 * float(xy_NM.mean())
