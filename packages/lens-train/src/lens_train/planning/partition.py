"""Split samples into packs of nearly equal load, in several measures at once.

A start that is balanced to first order: the samples, by cost, are dealt out in rounds, one to each pack, in a random
order each round. Then exchanges: as long as one pays, the pack that is furthest from the mean exchanges a sample for
that of another pack with which the sum of squared deviations falls most. The last round may leave places empty, and to
exchange with an empty place is to move. (More empty places, so that packs may differ more in their number of samples,
were tried and balance no better.)

Suffixes: P packs, S places of a pack, K samples, D measures of load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lens_train.planning.permutation import subkeys

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["partition"]

EXCHANGES_PER_PACK = 4
TRIED = 64
"""At most so many samples of a pack are considered at a time: every second, third … of its rounds, in turn."""
CLOSE_ENOUGH = 1e-3
"""Deviation from the mean load, in each measure, at which a pack is left alone."""


def partition(loads_KD: NDArray[np.float64], packs: int, *, key: int) -> NDArray[np.int64]:
    """Which samples each pack holds.

    Args:
        loads_KD: how much each sample weighs; the first measure is the one that the samples are dealt out by.
        packs: how many packs, at most as many as samples.
        key: of the random order.

    Returns:
        Sample numbers [P, S], -1 where a place is empty.
    """
    count, measures = loads_KD.shape
    places = -(-count // packs)
    # The row after the last sample, which is also number -1, weighs nothing.
    loads_KD = np.vstack([loads_KD * (packs / loads_KD.sum(0).clip(min=1e-300)), np.zeros(measures)])
    lots_N = subkeys(key, places * packs)
    table_N = np.full(places * packs, -1)
    table_N[:count] = np.lexsort((lots_N[:count], -loads_KD[:count, 0]))
    round_SP = np.argsort(lots_N.reshape(places, packs), axis=1)
    table_PS = np.take_along_axis(table_N.reshape(places, packs), round_SP, axis=1).T.copy()
    _exchange(table_PS, loads_KD)
    return table_PS


def _exchange(table_PS: NDArray[np.int64], loads_KD: NDArray[np.float64]) -> None:
    (packs, places), measures = table_PS.shape, loads_KD.shape[1]
    items_PSD = loads_KD[table_PS]
    off_PD = items_PSD.sum(1)
    off_PD -= off_PD.mean(0)
    settled_P = np.zeros(packs, dtype=bool)
    step = -(-places // TRIED)
    for turn in range(EXCHANGES_PER_PACK * packs):
        distance_P = np.square(off_PD).sum(1)
        distance_P[settled_P] = 0
        worst = int(distance_P.argmax())
        if distance_P[worst] <= CLOSE_ENOUGH**2:
            break
        tried_PTD = items_PSD[:, turn % step :: step]
        # With d = y - x, what x in exchange for y brings in, the sum of squares changes by twice |d|² + d·gap, which
        # is |x - (y + gap/2)|² - |gap/2|².
        x_TD, half_gap_PD = tried_PTD[worst], (off_PD[worst] - off_PD) / 2
        goal_PTD = tried_PTD + half_gap_PD[:, None]
        own_PT = np.square(goal_PTD).sum(2) - np.square(half_gap_PD).sum(1)[:, None]
        change_TN = np.square(x_TD).sum(1)[:, None] + own_PT.reshape(-1) - 2 * x_TD @ goal_PTD.reshape(-1, measures).T
        change_TPT = change_TN.reshape(len(x_TD), packs, len(x_TD))
        change_TPT[:, worst] = 0
        place, other, its_place = np.unravel_index(change_TPT.argmin(), change_TPT.shape)
        if change_TPT[place, other, its_place] > -1e-12:
            settled_P[worst] = True
            continue
        moved_D = tried_PTD[other, its_place] - x_TD[place]
        off_PD[worst] += moved_D
        off_PD[other] -= moved_D
        ours, theirs = ([worst, other], [place, its_place]), ([other, worst], [its_place, place])
        for array in (tried_PTD, table_PS[:, turn % step :: step]):
            array[ours] = array[theirs]
        settled_P[:] = False
