"""An arm of an ablation: the stages of the cell with a few values changed.

What is wrong in them is told where it stands in the file: below the arm's `set` if the change brought it, else in the
cell. So a mistake in the cell is one mistake, however many arms there are.
"""

from __future__ import annotations

import difflib
import re
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from lens_core.config.checked import existing
from lens_core.config.overrides import set_value
from lens_core.errors import ConfigError, LensError
from lens_core.specs import StageSpec
from lens_train.loop.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lens_core.config.stage import StageConfig
    from lens_core.registry import Registry

__all__ = ["NAME", "Overlay"]

NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")
_EQUAL = "equal"


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What an arm makes of the cell.

    Args:
        arm: its name.
        cell: the stages as the file has them.
        equal: the budget of all train stages, if they share one.
        changes: values by path, such as "model.optimizer.lr"; "equal.flops" is that of this arm.
    """

    arm: str
    cell: Sequence[Mapping[str, Any]]
    equal: Mapping[str, Any] | None
    changes: Mapping[str, Any]

    def stages(self, registry: Registry) -> list[StageConfig]:
        """The arm's stages.

        Raises:
            ValidationError: what is wrong in them, by paths below the ablation's own block.
        """
        blocks = self._changed()
        mistakes = _Mistakes()
        found: list[Any] = []
        for index, block in enumerate(blocks):
            try:
                found.append(registry.parse("stages", block))
            except ValidationError as error:
                for item in error.errors(include_url=False, include_context=False):
                    loc = existing(item["loc"], block, item["type"] in {"missing", "unknown_option"})
                    mistakes.add(self.place(index, *loc), item["msg"], type=item["type"], value=item["input"])
            except LensError as error:
                mistakes.add(self.place(index, "type"), str(error), type="component")
        mistakes.raise_any()
        if self.equal and not any(stage.type == "train" for stage in found):
            mistakes.add((_EQUAL,), "there is no train stage in the cell whose budget it could be")
        if not any(stage.type == "train" or _makes(stage, registry) == "scores" for stage in found):
            mistakes.add(
                ("cell",), "nothing in it measures anything: it needs a train stage, or one that scores models"
            )
        mistakes.raise_any()
        return found

    def place(self, index: int, *keys: str | int) -> tuple[str | int, ...]:
        """Where the file says what a stage of the arm has at some path: in the arm's changes, else in the cell."""
        name, below = self.cell[index].get("name"), [str(key) for key in keys]
        for path in reversed(list(self.changes)):
            first, *rest = path.split(".")
            common = min(len(rest), len(below))
            if common and first == name and rest[:common] == below[:common]:
                return ("arms", self.arm, "set", path, *keys[len(rest) :])
        return ("cell", index, *keys)

    def budget(self) -> dict[str, Any] | None:
        """What every train stage of the arm may spend, if that is said for all."""
        own = {path.partition(".")[2]: value for path, value in self.changes.items() if path.startswith(f"{_EQUAL}.")}
        return {**(self.equal or {}), **own} or None

    def _changed(self) -> list[dict[str, Any]]:
        data = {"stages": [dict(deepcopy(block)) for block in self.cell]}
        names = [block.get("name") for block in data["stages"]]
        mistakes = _Mistakes()
        for path, value in self.changes.items():
            where = ("arms", self.arm, "set", path)
            first, dot, _ = path.partition(".")
            if first == _EQUAL and dot:
                if self.equal is None:
                    mistakes.add(where, "there is no 'equal' to change")
            elif first not in names:
                mistakes.add(where, _no_stage(first, names))
            elif not dot:
                mistakes.add(where, f"say what of the stage changes, as in {first}.source")
            else:
                try:
                    set_value(data, path, deepcopy(value))
                except ConfigError as error:
                    mistakes.add(where, error.detail)
        self._give_budget(data["stages"], mistakes)
        mistakes.raise_any()
        return data["stages"]

    def _give_budget(self, blocks: Sequence[dict[str, Any]], mistakes: _Mistakes) -> None:
        budget = self.budget()
        if self.equal is None or budget is None:
            return
        own = [path for path in self.changes if path.startswith(f"{_EQUAL}.")]
        try:
            Budget.model_validate(budget)
        except ValidationError as error:
            for item in error.errors(include_url=False, include_context=False):
                mistakes.add(("arms", self.arm, "set", own[-1]), item["msg"], type=item["type"], value=item["input"])
        for index, block in enumerate(blocks):
            if block.get("type") == "train":
                if "budget" in block:
                    mistakes.add(self.place(index, "budget"), "its budget is what 'equal' says; leave one of them out")
                block["budget"] = budget


class _Mistakes:
    """Gathered, to be told together."""

    def __init__(self) -> None:
        self._found: list[InitErrorDetails] = []

    def add(self, place: tuple[str | int, ...], message: str, *, type: str = "component", value: Any = None) -> None:
        kind = PydanticCustomError(type, "{message}", {"message": message})  # type: ignore[arg-type]
        self._found.append(InitErrorDetails(type=kind, loc=place, input=value))

    def raise_any(self) -> None:
        if self._found:
            raise ValidationError.from_exception_data("AblateStageConfig", self._found)


def _no_stage(name: str, names: Sequence[Any]) -> str:
    known = [str(one) for one in names if one]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there is: {', '.join(known)}"
    return f"the cell has no stage {name!r} ({hint})"


def _makes(stage: StageConfig, registry: Registry) -> str:
    spec = registry.spec("stages", stage.type)
    assert isinstance(spec, StageSpec)
    return spec.makes
