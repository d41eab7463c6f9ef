"""A name for a meeting of ranks, which none before it had.

When torchrun starts its ranks again, they find in its store what those before them wrote: addresses of dead processes,
and calls to stages that are over. Under a prefix of their own they do not. The count of restarts is no such prefix:
each node counts its own.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["name_meeting"]


def name_meeting(store: Store, rank: int, size: int, timeout_s: float) -> str:
    """Agree on a name: rank 0 makes it, answers whoever says hello, and goes on when all have had an answer.

    Raises:
        RuntimeError: some did not come within the time.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", own)
        name: str = store.get(f"welcome/{own}").decode()  # waits
        store.set(f"{name}/here/{rank}", "")
        return name
    until, missing = time.monotonic() + timeout_s, list(range(1, size))
    while missing:
        if time.monotonic() > until:
            raise RuntimeError(f"nothing was heard of rank {', '.join(map(str, missing))}")
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", own)
        time.sleep(0.05)
        missing = [other for other in missing if not store.check([f"{own}/here/{other}"])]
    return own
