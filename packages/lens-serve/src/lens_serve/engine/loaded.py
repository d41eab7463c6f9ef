"""One model of an engine: its weights on the device, its LoRAs, and the calls that jobs make of it.

Each call gives what `lens generate` would: features, steps and pixels come from the same functions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lens_core.diffusion.device import pick_dtype
from lens_core.diffusion.drawing import Drawing
from lens_core.diffusion.model_folder import LENS_JSON, load_model_folder
from lens_core.diffusion.text_to_image import decode, encode, encode_starts, picture_HW3, unit_CHW
from lens_core.diffusion.weights.lora import load_lora, set_loras
from lens_core.errors import ConfigError, LensError, StorageError
from lens_core.storage import urls
from lens_core.storage.artifacts import load_artifact
from lens_serve.engine.messages import ModelInfo
from lens_serve.engine.previews import LinearPreview
from lens_serve.engine.texts import Texts
from lens_serve.engine.trouble import NotFiniteError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import numpy as np

    from lens_core.contracts.diffusion import Sampler
    from lens_core.diffusion.loaded_model import LoadedModel
    from lens_core.registry import Registry
    from lens_serve.config import ServedModel
    from lens_serve.engine.jobs import Job

__all__ = ["EngineModel", "device_name"]

TEXT_BYTES = 256 << 20
"""Of features that are remembered: some seventy prompts of 150 tokens at 23 KB a token."""


class EngineModel:
    """A served model in memory.

    Args:
        served: what it is called, and its LoRAs.
        loaded: its parts, on their device.
    """

    def __init__(self, served: ServedModel, loaded: LoadedModel):
        self.loaded = loaded
        self.info = _info(served, loaded)
        self.preview = LinearPreview.fit(loaded.autoencoder, loaded.device)
        self._loras = served.loras
        self._known: list[str] = []
        self._in_use: tuple[str, float] | None = None
        self._texts = Texts(TEXT_BYTES)

    @classmethod
    def load(cls, served: ServedModel, registry: Registry, device: torch.device) -> EngineModel:
        """Read the model's folder.

        Raises:
            LensError: there is no model or LoRA, it is damaged, or a library that it needs is missing.
        """
        for name, file in served.loras.items():
            if not urls.local_path(file).exists():  # what is in it is read when somebody asks for it
                raise LensError(f"the LoRA {name!r} of the model {served.name!r}: there is no {file}")
        loaded = load_model_folder(
            served.folder, registry=registry, dtype=pick_dtype(served.dtype), denoiser_dtype=None
        )
        with torch.inference_mode():
            return cls(served, loaded.to(device))

    @property
    def features(self) -> dict[str, str]:
        """What a receipt says of how it was computed."""
        device, transformer = self.loaded.device, self.loaded.transformer
        attention = type(transformer.attention).__name__ if hasattr(transformer, "attention") else ""
        return {
            "device": device_name(device),
            "dtype": self.info.dtype,
            "kernels": attention.removesuffix("Attention").lower(),
            "torch": str(torch.__version__),
        } | ({"threads": str(torch.get_num_threads())} if device.type == "cpu" else {})

    def sampler(self, steps: int) -> Sampler:
        """The model's own sampler with another number of steps.

        Raises:
            pydantic.ValidationError: it cannot take so many.
        """
        registry = self.loaded.registry
        settings = {**self.info.sampler, "steps": steps}
        sampler: Sampler = registry.build("samplers", registry.parse("samplers", settings))
        return sampler

    @torch.inference_mode(False)
    @torch.no_grad()
    def use(self, lora: str | None, scale: float) -> None:
        """Draw with this LoRA from now on, or with none. It is read when it is needed first.

        Raises:
            LensError: its file is damaged or does not fit the model, or the scale is not for it.
        """
        wanted = None if lora is None else (lora, scale)
        if wanted == self._in_use:
            return
        transformer = self.loaded.transformer
        self._in_use = ("", 0.0)  # nobody knows, until it is set
        self.loaded.forget_modulation()
        if lora is not None and lora not in self._known:
            # Called by its number, since the library takes no dots in a name.
            try:
                load_lora(transformer, urls.local_path(self._loras[lora]), name=f"lora{len(self._known)}")
            except ConfigError as error:
                # Its file is the operator's, and no client can mend it, nor is to be told where it is.
                raise LensError(f"the LoRA {lora}: {error}") from error
            self._known.append(lora)
        set_loras(transformer, {} if lora is None else {f"lora{self._known.index(lora)}": scale})
        self._in_use = wanted

    def has_read(self, lora: str | None) -> bool:
        """Whether `use` will have no file to read."""
        return lora is None or lora in self._known

    @torch.inference_mode()
    def encode(self, jobs: Sequence[Job]) -> int:
        """Fill in the features of jobs, which are encoded together where they are not remembered.

        An exact job's features must have been encoded in company of its negative prompt alone.

        Returns:
            How many tokens were encoded.
        """
        missing = [job for job in jobs if not self._remember(job)]
        if not missing:
            return 0
        guidance = 2.0 if any(job.guided for job in missing) else 1.0  # any other than 1 asks for negatives
        encoded = encode(self.loaded, [job.request for job in missing], guidance=guidance)
        tokens: dict[str, int] = {}
        for job, request in zip(missing, encoded, strict=True):
            negative = request.negative_text if job.guided else None
            kept = self._texts.put(_key(job, exact=len(missing) == 1), request.text or [], negative)
            job.request = replace(job.request, text=kept[0], negative_text=kept[1])
            tokens[request.prompt] = len(kept[0][0])
            tokens[request.negative] = len(kept[1][0]) if kept[1] else 0
        return sum(tokens.values())

    @torch.inference_mode()
    def begin(self, job: Job) -> Drawing:
        """The noise of a job, and the tokens of the picture that it starts from."""
        (clean_NC,) = encode_starts(self.loaded, [job.request])
        return Drawing(
            self.loaded,
            job.request,
            sampler=job.sampler,
            guidance=job.draw.guidance,
            clean_NC=clean_NC,
            reuse_guidance=job.draw.tier == "fast",
        )

    @torch.inference_mode()
    def decode(self, job: Job) -> np.ndarray:
        """The picture of a job whose steps are taken, uint8 [H, W, 3].

        Raises:
            NotFiniteError: it is none.
        """
        tokens_NC = job.drawing.tokens_NC
        if not bool(torch.isfinite(tokens_NC).all()):
            raise NotFiniteError(f"the picture is not finite: weights in {self.info.dtype} overflow or are damaged")
        try:
            (pixels_CHW,) = decode(self.loaded, [job.request], [tokens_NC])
        except LensError as error:
            raise NotFiniteError(str(error)) from error
        return picture_HW3(unit_CHW(pixels_CHW))

    def _remember(self, job: Job) -> bool:
        """Fill in the features of a job if they are known. Those of an exact job are good enough for every other."""
        found = self._texts.get(_key(job, exact=True)) or (
            None if job.exact else self._texts.get(_key(job, exact=False))
        )
        if found is None:
            return False
        job.request = replace(job.request, text=found[0], negative_text=found[1])
        return True


def _key(job: Job, *, exact: bool) -> Hashable:
    return job.request.prompt, job.request.negative if job.guided else None, exact


def _info(served: ServedModel, loaded: LoadedModel) -> ModelInfo:
    sampler = loaded.sampler.model_dump(mode="json")
    height, width = loaded.image_size
    try:
        hash_ = load_artifact(served.folder).hash
    except LensError:
        hash_ = None  # a model folder from elsewhere has no manifest
    try:
        created = int(urls.local_path(urls.join(served.folder, LENS_JSON)).stat().st_mtime)
    except (OSError, StorageError):
        created = 0  # a URL, or a folder in the released layout
    return ModelInfo(
        name=served.name,
        hash=hash_,
        height=height,
        width=width,
        stride=loaded.autoencoder.stride,
        steps=sampler.get("steps", 1),
        guidance=loaded.guidance,
        dtype=str(loaded.dtype).removeprefix("torch."),
        sampler=sampler,
        loras=tuple(served.loras),
        created=created,
        licence=str(loaded.lens.get("licence", "")),
    )


def device_name(device: torch.device) -> str:
    """What its bits depend on: a GPU as its maker calls it, a CPU by its instruction set."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability().lower()}"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
