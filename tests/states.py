"""Where an unfinished stage keeps its private state."""

from __future__ import annotations


def state_of(run, stage):
    """The folder of the key that the stage was begun with last; one that does not exist while there is none."""
    begun = list((run / ".state").glob(f"{stage}.????????????????"))
    if len(begun) > 1:
        return max(begun, key=lambda folder: folder.stat().st_ctime_ns)
    return begun[0] if begun else run / ".state" / f"{stage}.none"
