"""What is not finite on one rank: all ranks skip the step, or end the run, together."""

from __future__ import annotations

import json

from train.parallel import ranks, skipped


def test_a_step_that_is_not_finite_on_one_rank_moves_nothing_on_any(scenes, tmp_path):
    ranks.finish(ranks.start(skipped.__file__, 2, scenes["dense"].url, tmp_path))
    for rank in range(2):
        found = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert found["steps"] == [
            {"finite": True, "moved": True, "skipped": 0},
            {"finite": False, "moved": False, "skipped": 1},
            {"finite": True, "moved": True, "skipped": 1},
        ]
        assert found["told"].startswith("the loss or its gradient was not finite in step 4; ")
