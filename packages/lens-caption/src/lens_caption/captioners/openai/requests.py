"""The one request that is made for an image: previews, runs and batches send the same bytes."""

from __future__ import annotations

import base64
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_caption.captioners.openai.picture import sent_jpeg
from lens_caption.engine.request import BadImage, PreparedRequest
from lens_caption.profiles import Profile, UnknownModelError, estimate_text_tokens, load_profile
from lens_caption.prompts import Recipe, recipe_for_images
from lens_core.errors import ImageError
from lens_core.images import header

if TYPE_CHECKING:
    from lens_caption.captioners.openai.config import OpenAIConfig
    from lens_caption.engine.settings import LaneName

__all__ = ["RequestPlan", "build_request", "instruction_of", "profile_of", "recipe_of"]

_A_SERVER_OF_ONES_OWN = "http://localhost/v1"


def recipe_of(config: OpenAIConfig) -> Recipe:
    """What is asked about each image.

    Raises:
        ConfigError: there is no such recipe, or it needs more than an image.
    """
    return recipe_for_images(config.prompt, folder=config.recipes, instruction=config.instruction)


def instruction_of(config: OpenAIConfig) -> str:
    """The words that go with each image, those of the system included."""
    recipe = recipe_of(config)
    schema = json.dumps(recipe.answer_format()) if recipe.schema else ""
    return "\n".join(part for part in (recipe.system, recipe.instruction, schema) if part)


def build_request(config: OpenAIConfig, data: bytes, lane: LaneName = "sync") -> dict[str, Any]:
    """The body of a request.

    Raises:
        ImageError: the image cannot be decoded.
    """
    jpeg = sent_jpeg(data, max_side=config.max_side, quality=config.jpeg_quality)
    return RequestPlan.of(config, lane).body(_data_url(jpeg))


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
        jpeg = sent_jpeg(data, max_side=self.config.max_side, quality=self.config.jpeg_quality)
        size = header(jpeg)
        counted = self.profile or load_profile("local", base_url=_A_SERVER_OF_ONES_OWN, folder=None)
        before, after = self._frame
        return PreparedRequest(
            key=key,
            path="/responses" if self.config.speaks == "responses" else "/chat/completions",
            body=b"".join((before, base64.b64encode(jpeg), after)),
            input_tokens=self.text_tokens + counted.image_tokens(size.width, size.height, self.config.detail),
            max_output_tokens=self.config.max_output_tokens,
        )

    @functools.cached_property
    def _frame(self) -> tuple[bytes, bytes]:
        """The JSON before and after an image's base64, which is all that differs: so no image is escaped for JSON."""
        empty = _data_url(b"")
        before, _, after = json.dumps(self.body(empty), separators=(",", ":")).partition(f'"{empty}"')
        return f'{before}"{empty}'.encode(), f'"{after}'.encode()

    def body(self, url: str) -> dict[str, Any]:
        """The body of a request with the image of a URL, for the API that the endpoint speaks."""
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


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
