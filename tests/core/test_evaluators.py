"""The contract of evaluators: a verdict for a task of one skill, several for a task of several."""

from __future__ import annotations

import numpy as np
import pytest

from lens_core.contracts import EvalTask, verdicts


def task(skill):
    return EvalTask(id="1", skill=skill, prompts={"dense": "x"}, height=None, width=None)


@pytest.mark.parametrize("right", [True, False])
def test_one_skill_has_one_verdict(right):
    assert task("two").skills == ("two",)
    assert verdicts(task("two"), right) == [("two", right)]
    assert verdicts(task("two"), np.bool_(right)) == [("two", right)]
    assert verdicts(task(("two",)), [right]) == [("two", right)]


def test_several_skills_have_one_each():
    asked = task(("entity", "colour", "entity"))
    assert verdicts(asked, (True, False, False)) == [("entity", True), ("colour", False), ("entity", False)]
    for wrong in (True, (), (True, False), (True,) * 4):
        with pytest.raises(ValueError, match="zip"):
            verdicts(asked, wrong)
