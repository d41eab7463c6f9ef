"""What every component must do, whatever its kind."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import yaml
from pydantic import ValidationError

from lens_core.specs import ComponentSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lens_core.config.base import ComponentConfig
    from lens_core.registry import Registry

__all__ = ["HEAVY", "ComponentContract"]

HEAVY = ("torch", "diffusers", "transformers", "openai", "ray")
"""Libraries that neither a door nor a config module may load."""


class ComponentContract:
    """Set `kind`, `name` and, if the component has required options, `config`."""

    kind: ClassVar[str]
    name: ClassVar[str]
    config: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture
    def spec(self, lens_registry: Registry) -> ComponentSpec:
        """The component's spec, found as a pipeline would find it."""
        return lens_registry.spec(self.kind, self.name)

    @pytest.fixture
    def parsed(self, lens_registry: Registry) -> ComponentConfig:
        """The component's config object."""
        return lens_registry.parse(self.kind, {"type": self.name, **self.config})

    def test_summary_is_one_line(self, spec: ComponentSpec) -> None:
        """The summary is what `lens plugins list` shows: give it one line of some substance."""
        assert 10 <= len(spec.summary) <= 120
        assert "\n" not in spec.summary

    def test_config_module_is_light(self, spec: ComponentSpec) -> None:
        """Importing the config module must not load a heavy library: move the import to the implementation."""
        module = spec.config.split(":")[0]
        code = f"import sys, {module}; print(','.join(name for name in {HEAVY!r} if name in sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ""

    def test_unknown_option_is_refused(self, lens_registry: Registry) -> None:
        """A typo in YAML must not pass: derive the config from `lens_core.config.base.ComponentConfig`."""
        with pytest.raises(ValidationError, match="unknown option"):
            lens_registry.parse(self.kind, {"type": self.name, **self.config, "no_such_option": 1})

    def test_config_survives_yaml(self, lens_registry: Registry, parsed: ComponentConfig) -> None:
        """config → YAML → config is the identity: use types that YAML knows."""
        text = yaml.safe_dump(parsed.model_dump(mode="json"))
        assert lens_registry.parse(self.kind, yaml.safe_load(text)) == parsed

    def test_every_option_is_described(self, spec: ComponentSpec) -> None:
        """`lens plugins show` prints the descriptions: give every field one."""
        fields = spec.load_config().model_fields
        assert [name for name, field in fields.items() if name != "type" and not field.description] == []

    def test_target_exists(self, spec: ComponentSpec) -> None:
        """The implementation's dotted path must lead to something that can be called."""
        assert callable(spec.load_target())

    def test_stage_says_what_it_makes(self, spec: ComponentSpec) -> None:
        """A stage declares artefact types; other kinds have none."""
        assert isinstance(spec, StageSpec) == (self.kind == "stages")
