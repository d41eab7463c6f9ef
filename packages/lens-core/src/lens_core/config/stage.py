"""The base of every stage's config: its name in the pipeline, and where its inputs come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lens_core.config.base import ComponentConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lens_core.registry import Registry

__all__ = ["NestedStages", "StageConfig"]


@dataclass(frozen=True, kw_only=True)
class NestedStages:
    """Stages that a stage runs itself.

    Args:
        stages: in order.
        place: of a stage's number, and of keys below it, the path below the outer stage where the file spells it out.
    """

    stages: Sequence[StageConfig]
    place: Callable[..., tuple[str | int, ...]]


class StageConfig(ComponentConfig):
    """A step of a pipeline. Subclasses add `type`, their options, and a `source` if they take artefacts."""

    name: str = Field(
        pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$",
        max_length=64,
        description="Name of the step and of its folder in the run folder: lower-case letters, digits, '-', '_'.",
    )

    @property
    def lease_s(self) -> float | None:
        """Whether several machines may run the pipeline at once and share this stage's work.

        Then it is how many seconds a machine may be silent before the others take over what it had; None: one machine.
        """
        return None

    def keyed(self) -> dict[str, Any]:
        """The settings that the stage's result depends on: with others, it is made again."""
        return self.model_dump(mode="json")

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the earlier stages whose artefacts this one takes."""
        source = getattr(self, "source", ())
        if isinstance(source, str):
            return (source,)
        return tuple(source) if isinstance(source, list | tuple) else ()

    def nested(self, registry: Registry) -> Sequence[NestedStages]:
        """The runs of stages that this one does itself; they are checked with it, and may take from its sources."""
        return ()
