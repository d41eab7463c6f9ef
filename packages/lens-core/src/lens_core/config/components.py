"""Config fields that hold another component: `captioner: CaptionerField`.

In YAML such a field is a bare name (`sampler: flow-euler`) or a mapping with `type`. While validating, the registry
(from the validation context) gives the one config model that the name needs; the field then holds that model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lens_core.config.base import ComponentConfig
from lens_core.errors import LensError
from lens_core.registry import load_registry

if TYPE_CHECKING:
    from pydantic_core.core_schema import ValidationInfo

__all__ = [
    "KIND_MARK",
    "AutoencoderField",
    "CaptionerField",
    "ComponentOf",
    "DatasetField",
    "EvaluatorField",
    "FilterField",
    "ModelField",
    "RewriterField",
    "SafetyCheckerField",
    "SamplerField",
    "StageField",
    "TextEncoderField",
]

KIND_MARK = "x-lens-kind"
"""Stands in a field's JSON schema until `lens_core.config.schema` puts the installed components there."""


@dataclass(frozen=True)
class ComponentOf:
    """Marks a field as holding a component of `kind`."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {KIND_MARK: self.kind}

    def _validate(self, value: Any, info: ValidationInfo) -> ComponentConfig:
        if isinstance(value, ComponentConfig):
            return value
        if not isinstance(value, str | dict):
            raise PydanticCustomError("component", "should be a name or a mapping with 'type'")
        # From Python one may build a stage's config directly; then the installed components are meant.
        registry = info.context["registry"] if info.context else load_registry()
        try:
            return registry.parse(self.kind, value)  # type: ignore[no-any-return]
        except LensError as error:
            raise PydanticCustomError("component", "{reason}", {"reason": str(error)}) from error


def _dump(value: ComponentConfig, info: core_schema.FieldSerializationInfo) -> dict[str, Any]:
    return value.model_dump(mode=info.mode, exclude_unset=info.exclude_unset)


DatasetField = Annotated[ComponentConfig, ComponentOf("datasets")]
FilterField = Annotated[ComponentConfig, ComponentOf("filters")]
CaptionerField = Annotated[ComponentConfig, ComponentOf("captioners")]
ModelField = Annotated[ComponentConfig, ComponentOf("models")]
AutoencoderField = Annotated[ComponentConfig, ComponentOf("autoencoders")]
TextEncoderField = Annotated[ComponentConfig, ComponentOf("text_encoders")]
SamplerField = Annotated[ComponentConfig, ComponentOf("samplers")]
RewriterField = Annotated[ComponentConfig, ComponentOf("rewriters")]
SafetyCheckerField = Annotated[ComponentConfig, ComponentOf("safety_checkers")]
EvaluatorField = Annotated[ComponentConfig, ComponentOf("evaluators")]
StageField = Annotated[ComponentConfig, ComponentOf("stages")]
