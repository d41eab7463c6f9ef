"""The colour of an object, by CLIP: of sentences that differ in the colour only, the one closest to the cut-out.

The sentences are GenEval's three, whose features are averaged: "a photo of a COLOUR NAME", "a photo of a COLOUR-colored
NAME", "a photo of a COLOUR object". Suffixes: K colours, S sentences, F features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from lens_core.diffusion.device import pick_device
from lens_core.errors import ArtifactError, ConfigError
from lens_core.filters.vision.hugging_face import Embedder
from lens_train.evaluation.geneval.prompts import COLOURS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lens_core.config.devices import DeviceName
    from lens_train.evaluation.geneval.prompts import Colour
    from lens_train.evaluation.geneval.rules import Box

__all__ = ["ColourClassifier", "cut_out"]

_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")

_SENTENCES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


class ColourClassifier:
    """A frozen CLIP.

    Args:
        folder: the model, its tokenizer, and its preprocessor_config.json; nothing is loaded from elsewhere.
        device: where it runs.

    Raises:
        ConfigError: there is no such folder.
        ArtifactError: it holds no CLIP.
    """

    def __init__(self, folder: Path, *, device: DeviceName):
        if not folder.is_dir():
            raise ConfigError(f"geneval: there is no CLIP at {str(folder)!r}; give a folder on this machine")
        self._embed = Embedder(folder, device=str(pick_device(device)))
        self._model: Any = self._embed.model
        if not hasattr(self._model, "get_text_features"):
            raise ArtifactError(f"{folder}: {type(self._model).__name__} does not read texts; give a CLIP")
        if not any((folder / name).exists() for name in _VOCABULARIES):
            # transformers would make one of an empty vocabulary.
            raise ArtifactError(f"{folder} holds no tokenizer: there is none of {', '.join(_VOCABULARIES)}")
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises what comes to hand
            reason = " ".join(str(error).split())[:300]
            raise ArtifactError(f"{folder} holds no tokenizer that transformers can load: {reason}") from error
        self._texts: dict[str, np.ndarray] = {}

    def __call__(self, image_HW3: np.ndarray, name: str, boxes: Sequence[Box]) -> list[Colour]:
        """The colour of what is in each box, an object called `name`."""
        if name not in self._texts:
            self._texts[name] = self._features(name)
        texts_KF = self._texts[name]
        return [COLOURS[int(np.argmax(texts_KF @ self._embed(cut_out(image_HW3, box))))] for box in boxes]

    @torch.inference_mode()
    def _features(self, name: str) -> np.ndarray:
        """Of the colours, float32 [K, F], each of length one."""
        sentences = [form.format(colour=colour, name=name) for colour in COLOURS for form in _SENTENCES]
        tokens = self._tokenizer(sentences, padding=True, return_tensors="pt").to(self._model.device)
        output = self._model.get_text_features(**tokens)
        features = output if isinstance(output, torch.Tensor) else output.pooler_output
        features_KSF = F.normalize(features.float(), dim=-1).unflatten(0, (len(COLOURS), len(_SENTENCES)))
        return F.normalize(features_KSF.mean(1), dim=-1).cpu().numpy()  # type: ignore[no-any-return]


def cut_out(image_HW3: np.ndarray, box: Box) -> np.ndarray:
    """The pixels of a box, cut off at the picture's edge; at least one."""
    height, width = image_HW3.shape[:2]
    left, top = (min(max(math.floor(low), 0), side - 1) for low, side in ((box[0], width), (box[1], height)))
    return image_HW3[top : max(top + 1, math.ceil(box[3])), left : max(left + 1, math.ceil(box[2]))]
