"""The contract of stages, checked through the real runner: done once, skipped the second time, traceable."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lens_core.storage.artifacts import MANIFEST
from lens_core.testing.base import ComponentContract

if TYPE_CHECKING:
    from pathlib import Path

    from lens_core.registry import Registry

__all__ = ["StageContract"]


class StageContract(ComponentContract):
    """Set `stages`: a whole pipeline's stage list, as in YAML, whose last stage is the one under test."""

    kind = "stages"
    stages: tuple[dict[str, Any], ...]

    @pytest.fixture
    def parsed(self, lens_registry: Registry) -> Any:
        """The last stage's config object."""
        return lens_registry.parse("stages", self.stages[-1])

    def test_unknown_option_is_refused(self, lens_registry: Registry) -> None:
        """A typo in YAML must not pass."""
        with pytest.raises(ValueError, match="unknown option"):
            lens_registry.parse("stages", {**self.stages[-1], "no_such_option": 1})

    def test_runs_once_and_leaves_a_manifest(self, lens_registry: Registry, tmp_path: Path) -> None:
        """A second run does nothing; the artefact lists its files and its parents."""
        first, said_first = self._run(lens_registry, tmp_path)
        manifest = tmp_path / "run" / self.stages[-1]["name"] / MANIFEST
        written = manifest.stat().st_mtime_ns
        second, said_second = self._run(lens_registry, tmp_path)
        assert manifest.stat().st_mtime_ns == written
        assert "done already" not in said_first
        assert said_second.count("done already") == len(self.stages)
        assert first.hash == second.hash
        assert first.type == lens_registry.spec("stages", self.name).makes  # type: ignore[attr-defined]
        assert first.files
        assert [parent.name for parent in first.parents] == list(self._sources())

    def _run(self, registry: Registry, folder: Path) -> tuple[Any, str]:
        from lens_core.config.pipeline import load_pipeline
        from lens_core.pipeline.progress import Progress
        from lens_core.pipeline.runner import run_pipeline

        file = folder / "pipeline.yaml"
        file.write_text(yaml.safe_dump({"run": str(folder / "run"), "stages": list(self.stages)}))
        said = io.StringIO()
        artifacts = run_pipeline(load_pipeline(str(file), registry), registry, progress=Progress(stream=said))
        return artifacts[self.stages[-1]["name"]], said.getvalue()

    def _sources(self) -> list[str]:
        source = self.stages[-1].get("source", [])
        if isinstance(source, dict):
            return []
        return [source] if isinstance(source, str) else list(source)
