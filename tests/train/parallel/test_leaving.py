"""When ranks leave, nothing of their groups is left running."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.parallel import leaving, ranks


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where Linux lists them")
def test_who_leaves_waits_for_the_threads_of_all_groups():
    """A thread that outlives its interpreter aborts the process, now and then."""
    for said in ranks.finish(ranks.start(leaving.__file__, 2)):
        before, after = said.split("\n")[:2]
        assert len(before.split()) > 3
        assert after == ""
