"""Captions from a Hugging Face image-text-to-text model on this machine.

The recipes are those that the endpoints are asked with. A recipe with a schema is told the schema in words, because
nothing here forces a model to keep to it; what does not keep to it has the outcome `schema-invalid`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lens_caption.captioners.answers import outcome_of_text
from lens_caption.captioners.transformers_vlm.model import Answer, UnusableImages, VisionLanguageModel
from lens_caption.prompts import Recipe, recipe_for_images
from lens_core.contracts import CaptionOutcome, ImageItem
from lens_core.errors import ConfigError, ImageError, LensError
from lens_core.images import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_caption.captioners.transformers_vlm.config import TransformersVlmConfig

__all__ = ["TransformersVlmCaptioner"]

PREPARATION = "area"
"""How images are scaled; another way gets another name, because captions may depend on it."""


class TransformersVlmCaptioner:
    """Asks the model about images, all of a batch at once.

    It repeats itself to the word in float32. In shorter formats a sum may come out differently beside other neighbours,
    and once in a while another word wins.

    Raises:
        ConfigError: there is no such folder or recipe.
        ArtifactError: the folder's model cannot be used.
        LensError: this machine does not have the device.
    """

    def __init__(self, config: TransformersVlmConfig):
        self.config = config
        folder = Path(config.model).expanduser()
        if not folder.is_dir():
            raise ConfigError(
                f"there is no model in {config.model!r}; give the path of a folder on this machine", key="model"
            )
        self._recipe = recipe_for_images(config.prompt, folder=config.recipes, instruction=config.instruction)
        self._model: VisionLanguageModel | None = VisionLanguageModel(folder, config)
        self._prompt = self._model.prompt(self._recipe.system, _words(self._recipe))
        self.layers = tuple(layer.name for layer in self._recipe.layers)
        self.deterministic = config.temperature == 0 and self._model.dtype == "float32"
        self._provenance: dict[str, str | int | float] = {
            "captioner": "transformers-vlm",
            "asked_model": config.model,
            "prompt": self._recipe.id if not config.instruction else "own",
            "prompt_sha256": self._recipe.hash,
            "prep": PREPARATION,
            "max_side": config.max_side,
            "max_new_tokens": config.max_new_tokens,
            **self._model.provenance,
        }

    def caption(self, images: Sequence[ImageItem]) -> list[CaptionOutcome]:
        """One outcome per image, in order.

        Raises:
            LensError: the captioner is closed, or memory does not suffice for so many images at once.
        """
        if self._model is None:
            raise LensError("the captioner is closed")
        outcomes: dict[int, CaptionOutcome] = {}
        ready: list[tuple[int, Image.Image]] = []
        for place, item in enumerate(images):
            try:
                ready.append((place, self._prepared(item.data)))
            except ImageError as error:
                outcomes[place] = self._bad(item, str(error))
        for place, answer in self._answers(self._model, ready):
            item = images[place]
            outcomes[place] = self._bad(item, answer) if isinstance(answer, str) else self._outcome(item, answer)
        return [outcomes[place] for place in range(len(images))]

    def close(self) -> None:
        """Let the model go."""
        self._model = None

    def _prepared(self, data: bytes) -> Image.Image:
        image = Image.fromarray(decode(data))
        image.thumbnail((self.config.max_side, self.config.max_side), Image.Resampling.BOX)
        return image

    def _answers(
        self, model: VisionLanguageModel, ready: Sequence[tuple[int, Image.Image]]
    ) -> list[tuple[int, Answer | str]]:
        """What the model says of each image, or why it cannot take it."""
        if not ready:
            return []
        try:
            answers = model.answer(self._prompt, [image for _, image in ready])
            return [(place, answer) for (place, _), answer in zip(ready, answers, strict=True)]
        except UnusableImages as error:
            if len(ready) == 1:
                return [(ready[0][0], f"the model refuses it: {error}")]
            # One of them spoils it for all: halve until it stands alone.
            middle = len(ready) // 2
            return self._answers(model, ready[:middle]) + self._answers(model, ready[middle:])

    def _outcome(self, item: ImageItem, answer: Answer) -> CaptionOutcome:
        facts = {**self._provenance, "input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens}
        if answer.ended:
            return outcome_of_text(item.key, answer.text, self._recipe, facts)
        detail = f"the answer was cut off at max_new_tokens ({self.config.max_new_tokens})"
        return CaptionOutcome(key=item.key, status="truncated", detail=detail, provenance=facts)

    def _bad(self, item: ImageItem, reason: str) -> CaptionOutcome:
        return CaptionOutcome(key=item.key, status="bad-image", detail=reason, provenance=self._provenance)


def _words(recipe: Recipe) -> str:
    """What is asked, the schema of the answer included."""
    if recipe.schema is None:
        return recipe.instruction
    schema = json.dumps(recipe.schema, ensure_ascii=False)
    return f"{recipe.instruction}\n\nAnswer with one JSON object of this schema, and nothing else:\n{schema}"
