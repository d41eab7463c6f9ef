"""A folder's model as one function: prompts and images in, token ids out. Safetensors only; no code of theirs is run.

Shapes: ids_BT are token ids of B answers of up to T tokens.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers

from lens_core.errors import ArtifactError, LensError
from lens_core.filters.vision.models import model_hash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

    from lens_caption.captioners.transformers_vlm.config import TransformersVlmConfig

__all__ = ["Answer", "UnusableImages", "VisionLanguageModel"]

_PROCESSORS: Any = transformers.AutoProcessor
_MODELS: Any = transformers.AutoModelForImageTextToText
_IDENTITY = (".safetensors", ".json", ".jinja", ".model", ".txt")

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class UnusableImages(Exception):
    """The model or its processor refuses these images; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model wrote about one image.

    Args:
        text: without special tokens.
        ended: whether it came to its end before the limit.
        input_tokens: of the prompt, the image's included.
        output_tokens: that were written, the one that ends the answer included.
    """

    text: str
    ended: bool
    input_tokens: int
    output_tokens: int


class VisionLanguageModel:
    """Model and processor of a folder.

    Args:
        folder: where they are.
        config: of the captioner.

    Raises:
        ArtifactError: the folder holds no such model, or its answers cannot be told apart from its prompts.
        LensError: this machine does not have the device.
    """

    def __init__(self, folder: Path, config: TransformersVlmConfig):
        self.device = _device(config.device)
        self.hash = model_hash([file for file in folder.iterdir() if file.suffix in _IDENTITY])
        safely: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
        try:
            self._processor = _PROCESSORS.from_pretrained(folder, **safely)
            model, loading = _MODELS.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **safely
            )
        except Exception as error:
            # transformers raises what comes to hand: OSError, KeyError, ImportError, SafetensorError, …
            reason = _one_line(error)
            if isinstance(error, ImportError) and "torchvision" in reason.lower():
                reason = (
                    "its processor needs torchvision, which Lens does not bring: install the one that fits your "
                    "torch, or serve the model and take the captioner openai"
                )
            raise ArtifactError(
                f"{folder} holds no image-text-to-text model that can be used here: {reason}"
            ) from error
        if loading["missing_keys"]:
            # transformers would fill them with random numbers.
            raise ArtifactError(f"{folder} lacks weights, such as {sorted(loading['missing_keys'])[0]!r}")
        if getattr(self._processor, "chat_template", None) is None:
            raise ArtifactError(f"{folder} has no chat template: only models that follow instructions can be asked")
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._model = model.to(self.device).eval()
        self._tokenizer = self._processor.tokenizer
        self._tokenizer.padding_side = "left"  # answers then begin at one place
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._decoding = self._how_to_decode(config)
        self._ends = _ids(self._decoding.eos_token_id)
        if not self._ends:
            raise ArtifactError(f"{folder} names no eos_token_id, so that nobody could tell a whole answer from half")
        self._seed = config.seed

    @property
    def provenance(self) -> dict[str, str | int | float]:
        """What its words depend on beside the prompt and the image."""
        chosen, penalty = self._decoding, self._decoding.repetition_penalty
        return {
            "model_sha256": self.hash,
            "dtype": self.dtype,
            "device": self.device.type,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "decoding": "sampled" if chosen.do_sample else "greedy",
            **({"temperature": chosen.temperature, "seed": self._seed} if chosen.do_sample else {}),
            **({"repetition_penalty": penalty} if penalty not in {None, 1.0} else {}),
        }

    def prompt(self, system: str | None, words: str) -> str:
        """The chat template around what is asked about an image.

        Raises:
            ArtifactError: the template does not take it: some know no system message, for instance.
        """
        said = {"role": "system", "content": [{"type": "text", "text": system}]}
        asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}
        try:
            return self._processor.apply_chat_template(  # type: ignore[no-any-return]
                [said, asked] if system else [asked], add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # templates are programs
            raise ArtifactError(f"the model's chat template does not take the recipe: {_one_line(error)}") from error

    @torch.inference_mode()
    def answer(self, prompt: str, images: Sequence[Image.Image]) -> list[Answer]:
        """Ask the same about each image.

        Raises:
            UnusableImages: the processor or the model refuses them.
            LensError: the device's memory does not suffice.
        """
        try:
            inputs = self._processor(
                text=[prompt] * len(images), images=[[image] for image in images], padding=True, return_tensors="pt"
            )
        except Exception as error:  # of an image much longer than wide, say
            raise UnusableImages(_one_line(error)) from error
        inputs = inputs.to(self.device, dtype=self._model.dtype)  # integers stay integers
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(self._seed)
                ids_BT = self._model.generate(**inputs, generation_config=self._decoding)
        except ValueError as error:  # of an image whose size does not suit it
            raise UnusableImages(_one_line(error)) from error
        except torch.OutOfMemoryError as error:
            raise LensError(
                f"{len(images)} images at once are too many for the memory of {self.device}: set a smaller batch_size"
            ) from error
        lengths = inputs["attention_mask"].sum(1).tolist()
        answers = ids_BT[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._read(ids, length) for ids, length in zip(answers, lengths, strict=True)]

    def _read(self, ids: list[int], input_tokens: int) -> Answer:
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        return Answer(
            text=self._tokenizer.decode(ids[:end], skip_special_tokens=True),
            ended=end is not None,
            input_tokens=input_tokens,
            output_tokens=len(ids) if end is None else end + 1,
        )

    def _how_to_decode(self, config: TransformersVlmConfig) -> Any:
        """The folder's own settings, such as its end tokens, with ours for what is to be chosen."""
        chosen = copy.deepcopy(self._model.generation_config)
        chosen.max_length = None
        chosen.max_new_tokens = config.max_new_tokens
        chosen.num_beams = chosen.num_return_sequences = 1
        chosen.do_sample = config.temperature > 0
        chosen.temperature = config.temperature or None
        chosen.top_p = chosen.top_k = chosen.min_p = None
        if chosen.eos_token_id is None:
            chosen.eos_token_id = self._tokenizer.eos_token_id
        if chosen.pad_token_id is None:
            chosen.pad_token_id = self._tokenizer.pad_token_id
        return chosen


def _device(name: str) -> torch.device:
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if has[kind]))
    if not has[name]:
        raise LensError(f"device: {name} is not available on this machine; use auto or cpu")
    return torch.device(name)


def _ids(value: int | list[int] | None) -> set[int]:
    return set() if value is None else {value} if isinstance(value, int) else set(value)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
