"""The base of every config model: frozen, and strict about names.

A component's config is a `ComponentConfig` whose `type` is a `Literal` of its name:

    class ScenesConfig(ComponentConfig):
        type: Literal["scenes"] = "scenes"
        count: int = Field(gt=0, description="How many images to render.")
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

__all__ = ["NO_CREDENTIALS", "ComponentConfig", "Config", "Url", "config_hash", "first_mistake", "has_credentials"]

NO_CREDENTIALS = "a URL must not carry credentials; set them in the environment"


def has_credentials(url: str) -> bool:
    """Whether a URL is of the form `scheme://user:secret@host/path`."""
    return "@" in url.partition("://")[2].partition("/")[0]


def _no_credentials(url: str) -> str:
    if has_credentials(url):
        # An error of a type of its own, so that nobody writes the value beside the message.
        raise PydanticCustomError("credentials", NO_CREDENTIALS)
    return url


Url = Annotated[str, AfterValidator(_no_credentials)]
"""A path or an fsspec URL; secrets come from the environment only."""


class Config(BaseModel):
    """A block of settings. Unknown names are refused, with a suggestion."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_options(cls, data: Any) -> Any:
        if isinstance(data, dict):
            names = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = [key for key in data if key not in names]
            if unknown:
                raise ValidationError.from_exception_data(
                    cls.__name__, [_unknown_option(key, data[key], names) for key in unknown]
                )
        return data


class ComponentConfig(Config):
    """The settings of one component; `type` is the component's name."""

    type: str


def config_hash(config: Config | dict[str, Any]) -> str:
    """sha256 (hex) of a config's canonical JSON: the same settings give the same hash on every machine."""
    plain = config.model_dump(mode="json") if isinstance(config, Config) else config
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def first_mistake(error: ValidationError) -> tuple[str | None, str]:
    """The first of a validation's mistakes: its key, if it is about one, and a message that goes on with a line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    return ".".join(map(str, first["loc"])) or None, f"{message[:1].lower()}{message[1:]}"


def _unknown_option(key: Any, value: Any, names: set[str]) -> InitErrorDetails:
    close = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"options: {', '.join(sorted(names))}"
    error = PydanticCustomError("unknown_option", "unknown option ({hint})", {"hint": hint})
    return InitErrorDetails(type=error, loc=(str(key),), input=value)
