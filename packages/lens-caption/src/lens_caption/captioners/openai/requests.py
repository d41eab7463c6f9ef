"""The one request that is made for an image: previews, runs and batches send the same bytes."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lens_caption.engine.request import BadImage, PreparedRequest
from lens_caption.profiles import Profile, UnknownModelError, estimate_text_tokens, load_profile
from lens_caption.prompts import Layer, Recipe, load_recipe
from lens_core.errors import ConfigError, ImageError
from lens_core.images import decode, header

if TYPE_CHECKING:
    from lens_caption.captioners.openai.config import OpenAIConfig
    from lens_caption.engine.settings import LaneName

__all__ = ["RequestPlan", "build_request", "PREPARATION", "instruction_of", "profile_of", "prompt_hash", "recipe_of"]

PREPARATION = "area, jpeg"
"""How images are scaled and encoded; another way gets another name, because captions may depend on it."""

_A_SERVER_OF_ONES_OWN = "http://localhost/v1"


def recipe_of(config: OpenAIConfig) -> Recipe:
    """What is asked about each image.

    Raises:
        ConfigError: there is no such recipe, or it needs more than an image.
    """
    if config.instruction:
        return Recipe(
            name="own",
            version=1,
            summary="",
            system=None,
            instruction=config.instruction,
            schema=None,
            layers=(Layer(name="own"),),
        )
    recipe = load_recipe(config.prompt, folder=Path(config.recipes) if config.recipes else None)
    if recipe.inputs:
        raise ConfigError(f"the recipe {recipe.id} needs {', '.join(recipe.inputs)} beside the image", key="prompt")
    return recipe


def instruction_of(config: OpenAIConfig) -> str:
    """The words that go with each image, those of the system included."""
    recipe = recipe_of(config)
    schema = json.dumps(recipe.answer_format()) if recipe.schema else ""
    return "\n".join(part for part in (recipe.system, recipe.instruction, schema) if part)


def prompt_hash(config: OpenAIConfig) -> str:
    """First 16 hex digits of the sha256 of what is asked."""
    return recipe_of(config).hash


def build_request(config: OpenAIConfig, data: bytes, lane: LaneName = "sync") -> dict[str, Any]:
    """The body of a request.

    Raises:
        ImageError: the image cannot be decoded.
    """
    return RequestPlan.of(config, lane).body(_jpeg(config, data))


@dataclass(frozen=True)
class RequestPlan:
    """Everything that is the same for all images; it travels to the processes that prepare them.

    Args:
        config: of the captioner.
        recipe: what is asked.
        profile: of the model; None if nothing is known of it.
        lane: for which the requests are.
    """

    config: OpenAIConfig
    recipe: Recipe
    profile: Profile | None
    lane: LaneName
    text_tokens: int

    @classmethod
    def of(cls, config: OpenAIConfig, lane: LaneName = "sync") -> RequestPlan:
        """The plan of a captioner; raises `ConfigError`."""
        return cls(config, recipe_of(config), profile_of(config), lane, estimate_text_tokens(instruction_of(config)))

    def __call__(self, key: str, data: bytes) -> PreparedRequest | BadImage:
        """The request of an image, or why there is none."""
        try:
            return self.prepare(key, data)
        except ImageError as error:
            return BadImage(key=key, detail=str(error))

    def prepare(self, key: str, data: bytes) -> PreparedRequest:
        """The request of an image; raises `ImageError`."""
        jpeg = _jpeg(self.config, data)
        size = header(jpeg)
        counted = self.profile or load_profile("local", base_url=_A_SERVER_OF_ONES_OWN, folder=None)
        return PreparedRequest(
            key=key,
            path="/responses" if self.config.speaks == "responses" else "/chat/completions",
            body=json.dumps(self.body(jpeg), separators=(",", ":")).encode(),
            input_tokens=self.text_tokens + counted.image_tokens(size.width, size.height, self.config.detail),
            max_output_tokens=self.config.max_output_tokens,
        )

    def body(self, jpeg: bytes) -> dict[str, Any]:
        """The body of a request, for the API that the endpoint speaks."""
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        config, recipe, answer = self.config, self.recipe, self.recipe.answer_format()
        common: dict[str, Any] = {} if config.temperature is None else {"temperature": config.temperature}
        if self.lane == "flex":
            common["service_tier"] = "flex"
        effort = config.reasoning_effort or (self.profile.parameters.reasoning_effort if self.profile else None)
        if config.speaks == "responses":
            # Here an image part must name its detail.
            content: list[dict[str, Any]] = [
                {"type": "input_text", "text": recipe.instruction},
                {"type": "input_image", "image_url": url, "detail": config.detail or "auto"},
            ]
            return {
                "model": config.model,
                **({"instructions": recipe.system} if recipe.system else {}),
                "input": [{"role": "user", "content": content}],
                "max_output_tokens": config.max_output_tokens,
                **({"text": {"format": answer}} if answer else {}),
                **({"reasoning": {"effort": effort}} if effort else {}),
                **common,
            }
        detail = {} if config.detail is None else {"detail": config.detail}
        content = [
            {"type": "text", "text": recipe.instruction},
            {"type": "image_url", "image_url": {"url": url, **detail}},
        ]
        system = [{"role": "system", "content": recipe.system}] if recipe.system else []
        shape = {name: value for name, value in (answer or {}).items() if name != "type"}
        return {
            "model": config.model,
            "messages": [*system, {"role": "user", "content": content}],
            self._output_limit(): config.max_output_tokens,
            **({"response_format": {"type": "json_schema", "json_schema": shape}} if shape else {}),
            **({"reasoning_effort": effort} if effort else {}),
            **common,
        }

    def _output_limit(self) -> str:
        # OpenAI's newer models refuse max_tokens; most other servers know only that.
        if self.profile is not None:
            return self.profile.parameters.output_limit
        return "max_completion_tokens" if self.config.is_openai or self.config.is_azure else "max_tokens"


def profile_of(config: OpenAIConfig) -> Profile | None:
    """What is known of the model; None if that is nothing."""
    try:
        return load_profile(
            config.model, base_url=config.base_url, folder=Path(config.profiles) if config.profiles else None
        )
    except UnknownModelError:
        return None


def _jpeg(config: OpenAIConfig, data: bytes) -> bytes:
    """The image as it is sent: averaged over areas, which costs a third of a sharper filter and suits a captioner."""
    image = Image.fromarray(decode(data))
    image.thumbnail((config.max_side, config.max_side), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=config.jpeg_quality)
    return stream.getvalue()
