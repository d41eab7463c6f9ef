"""Questions about images that need more than the image: a caption to be corrected, statements to be judged.

The recipe's inputs differ from image to image; all else is as for captions: one way to make a request, one engine that
sends it, one journal, limiter and budget.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lens_caption.captioners.openai.captioner import OpenAICaptioner
from lens_caption.captioners.openai.requests import RequestPlan, profile_of
from lens_caption.engine.request import BadImage, PreparedRequest
from lens_caption.profiles import estimate_text_tokens
from lens_core.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lens_caption.captioners.openai.config import OpenAIConfig
    from lens_caption.engine.settings import LaneName
    from lens_caption.prompts import Recipe

__all__ = ["QuestionCaptioner", "QuestionPlan"]


class QuestionCaptioner(OpenAICaptioner):
    """Asks with a recipe that takes inputs.

    Args:
        config: of the model and the endpoint; its `prompt` is not looked at.
        recipe: what is asked.
        inputs: what is put into the recipe for an image, by its key; for processes that prepare, it can be pickled.

    Raises:
        LensError: the endpoint needs a key and the environment has none.
    """

    def __init__(self, config: OpenAIConfig, recipe: Recipe, inputs: Callable[[str], Mapping[str, Any]]):
        super().__init__(config.model_copy(update={"prompt": "dense-1", "instruction": None}))
        self._recipe = recipe
        self._inputs = inputs
        self._plans = {"sync": self._plan("sync")}
        self.layers = tuple(layer.name for layer in recipe.layers)
        self._provenance |= {"prompt": recipe.id, "prompt_sha256": recipe.hash}

    def preparer(self, lane: LaneName) -> QuestionPlan:  # type: ignore[override]
        """Makes requests in any process."""
        if lane not in self._plans:
            self._plans[lane] = self._plan(lane)
        return self._plans[lane]  # type: ignore[return-value]

    def _plan(self, lane: LaneName) -> Any:
        return QuestionPlan(RequestPlan(self.config, self._recipe, profile_of(self.config), lane, 0), self._inputs)


@dataclass(frozen=True)
class QuestionPlan:
    """Makes the request of an image: the plan of a caption, with the inputs of this image in its words.

    Args:
        plan: what is the same for all.
        inputs: of an image, by its key.
    """

    plan: RequestPlan
    inputs: Callable[[str], Mapping[str, Any]]

    def __call__(self, key: str, data: bytes) -> PreparedRequest | BadImage:
        """The request of an image, or why there is none."""
        try:
            return self.prepare(key, data)
        except ImageError as error:
            return BadImage(key=key, detail=str(error))

    def prepare(self, key: str, data: bytes) -> PreparedRequest:
        """The request of an image; raises `ImageError`."""
        recipe = self.plan.recipe
        words = recipe.fill(**self.inputs(key))
        schema = json.dumps(recipe.answer_format()) if recipe.schema else ""
        tokens = estimate_text_tokens("\n".join(part for part in (recipe.system, words, schema) if part))
        asked = replace(recipe, instruction=words, inputs=())
        return replace(self.plan, recipe=asked, text_tokens=tokens).prepare(key, data)
