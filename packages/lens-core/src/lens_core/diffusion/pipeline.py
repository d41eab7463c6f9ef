"""`LensPipeline`: the text-to-image model with the conventions of diffusers, over `lens_core.diffusion.text_to_image`.

    pipe = LensPipeline.from_pretrained("folder-or-hub-id", torch_dtype=torch.bfloat16).to("cuda")
    image = pipe("…", height=1024, width=1024, generator=torch.Generator().manual_seed(7)).images[0]

What diffusers has one of, here may be a list: the prompts of a call may each have a size of their own.

Suffixes: B prompts of a call, L text layers, S padded text length, E text width, N image tokens, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lens_core.config.base import ComponentConfig
from lens_core.config.checked import checked_component
from lens_core.diffusion.autoencoders.wrap import wrap_vae
from lens_core.diffusion.device import pick_device
from lens_core.diffusion.loaded_model import LoadedModel
from lens_core.diffusion.model_folder import load_model_folder, save_model_folder
from lens_core.diffusion.requests import Request, Start, check_requests
from lens_core.diffusion.text_to_image import draw
from lens_core.diffusion.weights.lora import fuse_loras, load_lora, set_loras, unfuse_loras, unload_loras
from lens_core.errors import ConfigError
from lens_core.registry import load_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from lens_core.registry import Registry

__all__ = ["LensPipeline", "LensPipelineOutput"]

RELEASED_GUIDANCE = 5.0
RELEASED_SAMPLER = {"type": "flow-euler", "shift": "released"}
_OTHER_GRIDS = (
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal", "invert_sigmas"),
    "stochastic_sampling",
)
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class LensPipelineOutput:
    """What a call returns.

    Args:
        images: PIL images; or float arrays [B, H, W, 3] or tensors [B, 3, H, W] in [0, 1]; or latents [B, N, C]. A list
            where their sizes differ.
    """

    images: Any


class LensPipeline:
    """Text to image, image to image, and inpainting.

    Args:
        transformer: the denoiser, a `LensTransformer2DModel`.
        vae: a module of diffusers (`AutoencoderKLFlux2`, `AutoencoderKL`), or one of Lens' autoencoders.
        text_encoder: one of Lens' text encoders; None where calls bring `prompt_embeds`.
        tokenizer: None: Lens' text encoders bring theirs.
        scheduler: a sampler by name or config, or a flow-matching scheduler of diffusers, whose shift is taken over;
            None is what the released checkpoints have.

    Raises:
        ConfigError: a part that cannot be used.
    """

    def __init__(
        self,
        transformer: nn.Module,
        vae: Any,
        text_encoder: Any = None,
        tokenizer: None = None,
        scheduler: Any = None,
    ):
        if tokenizer is not None or (text_encoder is not None and not hasattr(text_encoder, "tokenize")):
            raise ConfigError(
                "text_encoder must be one of Lens' text encoders, which bring their tokenizer and template: use "
                "LensPipeline.from_pretrained, or hand over prompt_embeds"
            )
        registry = load_registry()
        autoencoder = vae if hasattr(vae, "stride") else wrap_vae(vae)
        self.model = LoadedModel(
            transformer=transformer.eval(),
            text_encoder=text_encoder,
            autoencoder=autoencoder,
            sampler=_sampler(scheduler, registry),
            image_size=(64 * autoencoder.stride,) * 2,
            guidance=RELEASED_GUIDANCE,
            guidance_rescale=True,
            registry=registry,
        )
        self.model.device = next(transformer.parameters()).device

    @classmethod
    def from_pretrained(cls, source: str | Path, *, torch_dtype: torch.dtype | None = None) -> LensPipeline:
        """The pipeline of a model folder, an fsspec URL, or a repository on the Hugging Face hub.

        Args:
            source: where; released folders, and those that Lens trained.
            torch_dtype: of the weights.

        Raises:
            ArtifactError: there is no model, or it is damaged.
        """
        pipeline = cls.__new__(cls)
        pipeline.model = load_model_folder(str(source), dtype=torch_dtype)
        return pipeline

    def save_pretrained(self, folder: Path | str, *, licence: str = "") -> None:
        """Write a model folder, which `from_pretrained` reads; the folder must be new or empty.

        Raises:
            ConfigError: LoRAs are loaded: unload them, or fuse them and unload.
        """
        config = self.transformer.config
        fields = ("num_layers", "num_attention_heads", "attention_head_dim", "axes_dims_rope")
        lens = self.model.lens
        save_model_folder(
            Path(folder),
            transformer=self.transformer,
            model=self.model.registry.parse(
                "models",
                lens.get("model") or {"type": "lens", "preset": "3.8b", **{key: config[key] for key in fields}},
            ),
            text_encoder=self.text_encoder,
            autoencoder=self.model.autoencoder,
            sampler=self.model.sampler,
            prediction=self.model.prediction,
            image_size=self.model.image_size,
            guidance=self.model.guidance,
            guidance_rescale=self.model.guidance_rescale,
            parents=lens.get("parents", []),
            licence=licence or lens.get("licence", ""),
        )

    @property
    def transformer(self) -> Any:
        """The denoiser."""
        return self.model.transformer

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.model.autoencoder

    @property
    def text_encoder(self) -> Any:
        """The text encoder, or None."""
        return self.model.text_encoder

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def to(self, device: torch.device | str) -> LensPipeline:
        """Move all parts to a device."""
        self.model.to(torch.device(device))
        return self

    def enable_model_cpu_offload(self, device: torch.device | str | None = None) -> None:
        """Keep the parts on the CPU; encoder, denoiser and decoder come to the device in turn, when they are needed."""
        self.model.to(torch.device(device) if device else pick_device("auto"), take_turns=True)

    def enable_modulation_table(self, device: torch.device | str | None = None) -> None:
        """Leave the modulation layers, a third of the denoiser, on the CPU: a call's timesteps need them only once."""
        self.model.to(torch.device(device) if device else None, modulation_table=True)

    def load_lora_weights(self, source: Path | dict[str, Tensor], adapter_name: str = "default") -> None:
        """Add a LoRA to the denoiser; see `lens_core.diffusion.weights.lora.load_lora`."""
        load_lora(self.transformer, source, name=adapter_name)
        self.model.forget_modulation()

    def set_adapters(self, names: str | Sequence[str], weights: float | Sequence[float] = 1.0) -> None:
        """Use these LoRAs, each with its weight, and no others."""
        chosen = [names] if isinstance(names, str) else list(names)
        scales = [float(weights)] * len(chosen) if isinstance(weights, int | float) else list(weights)
        set_loras(self.transformer, dict(zip(chosen, scales, strict=True)))
        self.model.forget_modulation()

    def fuse_lora(self) -> None:
        """Add the LoRAs in use to the weights."""
        fuse_loras(self.transformer)
        self.model.forget_modulation()

    def unfuse_lora(self) -> None:
        """Take them out again."""
        unfuse_loras(self.transformer)
        self.model.forget_modulation()

    def unload_lora_weights(self) -> None:
        """Forget all LoRAs."""
        unload_loras(self.transformer)
        self.model.forget_modulation()

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | Sequence[int] | None = None,
        width: int | Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        prompt_embeds: Sequence[Tensor] | None = None,
        prompt_mask: Tensor | None = None,
        negative_prompt_embeds: Sequence[Tensor] | None = None,
        negative_prompt_mask: Tensor | None = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float = 0.6,
        scheduler: Any = None,
        reference_rounding: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> Any:
        """Draw.

        Args:
            prompt: one or several.
            negative_prompt: one for all, or one each; empty or None is no text at all.
            height: in pixels, one for all or one each; by default the model's, or the image's.
            width: likewise.
            num_inference_steps: by default the model's.
            guidance_scale: by default the model's; 1 does without the second branch.
            num_images_per_prompt: how many of each; those of a prompt lie together in the result.
            generator: draws the noise, as in diffusers; one for all or one for each image.
            seed: instead of a generator: the noise of `lens generate --seed`, one for all or one for each prompt.
            latents: the noise itself [B, N, C], or a tensor [N, C] for each image.
            prompt_embeds: features instead of prompts, a tensor [B, S, E] for each of L layers.
            prompt_mask: bool [B, S], True where a token counts; None: all do.
            negative_prompt_embeds: likewise for the negative prompts; B or 1 of them.
            negative_prompt_mask: likewise.
            image: what to start from instead of noise: a PIL image, a uint8 array [H, W, 3] or a tensor [3, H, W] in
                [0, 1]; one for all or a list.
            mask_image: where to redraw: white or True; a PIL image or an array [H, W]; one for all or a list.
            strength: the share of the steps that are taken from the image on, above 0 and at most 1.
            scheduler: another sampler for this call, by name or config.
            reference_rounding: round timesteps as the released pipeline does in half precision.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns a tuple.
            callback_on_step_end: called as (pipeline, step, time, {"latents": …}) after each step of a batch; what it
                returns is ignored.

        Raises:
            ConfigError: arguments that do not fit each other, or cannot be drawn.
        """
        if output_type not in OUTPUT_TYPES:
            raise ConfigError(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
        texts = _features(prompt_embeds, prompt_mask, "prompt")
        count = _count(prompt, texts)
        sampler = self._sampler_of_call(scheduler, num_inference_steps)
        requests = self._requests(
            count,
            num_images_per_prompt,
            prompt=prompt,
            texts=texts,
            negative=negative_prompt,
            negative_texts=_features(negative_prompt_embeds, negative_prompt_mask, "negative_prompt"),
            height=height,
            width=width,
            seed=seed,
            image=image,
            mask_image=mask_image,
            strength=strength,
        )
        check_requests(requests, self.model.autoencoder)
        if seed is not None and generator is not None:
            raise ConfigError("give a seed or a generator, not both")
        if seed is None or latents is not None:
            requests = self._with_noise(requests, generator, latents)
            check_requests(requests, self.model.autoencoder)

        def told(step: int, time: float, tokens: list[Tensor]) -> None:
            if callback_on_step_end:
                callback_on_step_end(self, step, time, {"latents": _stacked(tokens)})

        drawn = draw(
            self.model,
            requests,
            sampler=sampler,
            guidance=guidance_scale,
            on_step=told,
            reference_rounding=reference_rounding,
            latents=output_type == "latent",
        )
        images = _as(output_type, list(drawn))
        return LensPipelineOutput(images) if return_dict else (images,)

    def _requests(
        self,
        count: int,
        copies: int,
        *,
        prompt: Any,
        texts: list[list[Tensor]] | None,
        negative: Any,
        negative_texts: list[list[Tensor]] | None,
        height: Any,
        width: Any,
        seed: Any,
        image: Any,
        mask_image: Any,
        strength: float,
    ) -> list[Request]:
        stride = self.model.autoencoder.stride
        prompts = _each(prompt if prompt is not None else "", count, "prompt")
        negatives = _each(negative or "", count, "negative_prompt")
        pictures = _each(image, count, "image")
        masks = _each(mask_image, count, "mask_image")
        heights, widths = _each(height, count, "height"), _each(width, count, "width")
        seeds = _each(seed or 0, count, "seed")
        if copies < 1:
            raise ConfigError(f"num_images_per_prompt is {copies}, not 1 or more")
        if negative_texts is not None:
            negative_texts = negative_texts * count if len(negative_texts) == 1 else negative_texts
            if len(negative_texts) != count:
                raise ConfigError(f"negative_prompt_embeds: {len(negative_texts)} for {count} prompts")
        requests = []
        for i in range(count):
            if masks[i] is not None and pictures[i] is None:
                raise ConfigError("mask_image needs an image to redraw a part of")
            own = _size_of(pictures[i])
            default = self.model.image_size if own is None else tuple(max(side // stride, 1) * stride for side in own)
            size = (
                default[0] if heights[i] is None else heights[i],
                default[1] if widths[i] is None else widths[i],
            )
            start = None
            if pictures[i] is not None:
                mask = None if masks[i] is None else _mask(masks[i], *size)
                start = Start(pixels_CHW=_pixels(pictures[i], *size), strength=strength, mask_HW=mask)
            for copy in range(copies):
                requests.append(
                    Request(
                        prompt=prompts[i],
                        height=size[0],
                        width=size[1],
                        seed=seeds[i],
                        index=copy,
                        negative=negatives[i] or "",
                        text=None if texts is None else texts[i],
                        negative_text=None if negative_texts is None else negative_texts[i],
                        start=start,
                    )
                )
        return requests

    def _with_noise(self, requests: list[Request], generator: Any, latents: Any) -> list[Request]:
        if latents is not None:
            given = list(latents)
            if len(given) != len(requests):
                raise ConfigError(f"{len(given)} latents for {len(requests)} images")
        else:
            generators = list(generator) if isinstance(generator, list | tuple) else [generator] * len(requests)
            if len(generators) != len(requests):
                raise ConfigError(f"{len(generators)} generators for {len(requests)} images")
            stride, channels = self.model.autoencoder.stride, self.model.autoencoder.channels
            given = [
                torch.randn(math.prod(r.grid(stride)), channels, generator=g, device=g.device if g else "cpu")
                for r, g in zip(requests, generators, strict=True)
            ]
        return [replace(request, noise_NC=noise) for request, noise in zip(requests, given, strict=True)]

    def _sampler_of_call(self, scheduler: Any, steps: int | None) -> ComponentConfig:
        own = self.model.sampler
        config = own if scheduler is None else _sampler(scheduler, self.model.registry, own)
        return self.model.chosen_sampler(config, steps)


def _sampler(scheduler: Any, registry: Registry, own: ComponentConfig | None = None) -> ComponentConfig:
    """A sampler's config from what users hand over; one by name takes steps and shift of the model's own."""
    if scheduler is None:
        return checked_component("samplers", RELEASED_SAMPLER, registry)
    if isinstance(scheduler, ComponentConfig):
        return scheduler
    if hasattr(scheduler, "config"):
        return checked_component("samplers", {"type": "flow-euler", "shift": _shift_of(scheduler)}, registry)
    if isinstance(scheduler, str):
        known = own.model_dump() if own else RELEASED_SAMPLER
        takes = registry.spec("samplers", scheduler).load_config().model_fields
        scheduler = {
            "type": scheduler,
            **{name: known[name] for name in ("steps", "shift") if name in known and name in takes},
        }
    return checked_component("samplers", scheduler, registry)


def _shift_of(scheduler: Any) -> str | float:
    """What a scheduler of diffusers says about its time grid, in our words."""
    known, name = scheduler.config, type(scheduler).__name__
    if name != "FlowMatchEulerDiscreteScheduler":
        raise ConfigError(f"a scheduler of the class {name} is not known; known: FlowMatchEulerDiscreteScheduler")
    odd = [key for key in _OTHER_GRIDS if known.get(key)]
    if odd or known.get("shift", 1.0) <= 0:
        raise ConfigError(
            f"the scheduler's {', '.join(odd) or 'shift'} cannot be taken over: name one of Lens' samplers"
        )
    return "released" if known.get("use_dynamic_shifting") else math.log(known.get("shift", 1.0))


def _count(prompt: Any, texts: list[list[Tensor]] | None) -> int:
    if (prompt is None) == (texts is None):
        raise ConfigError("give either prompt or prompt_embeds")
    if texts is not None:
        return len(texts)
    return 1 if isinstance(prompt, str) else len(prompt)


def _features(layers: Sequence[Tensor] | None, mask_BS: Tensor | None, name: str) -> list[list[Tensor]] | None:
    """Padded features [B, S, E] per layer to a list of [T, E] per layer for each prompt."""
    if layers is None:
        return None
    if not layers:
        raise ConfigError(f"{name}_embeds has no layers")
    size, length = layers[0].shape[:2]
    if mask_BS is None:
        mask_BS = torch.ones(size, length, dtype=torch.bool)
    mask_BS = mask_BS.bool().cpu()
    if mask_BS.shape != (size, length) or any(layer.shape[:2] != (size, length) for layer in layers):
        shapes = ", ".join(str(tuple(layer.shape)) for layer in layers)
        raise ConfigError(f"{name}_embeds of shapes {shapes} and {name}_mask of {tuple(mask_BS.shape)} do not fit")
    return [[layer[b][mask_BS[b].to(layer.device)] for layer in layers] for b in range(size)]


def _each(value: Any, count: int, name: str) -> list[Any]:
    """One value for all, or a list with one for each."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ConfigError(f"{name}: {len(value)} values for {count} prompts")
    return list(value)


def _size_of(picture: Any) -> tuple[int, int] | None:
    if picture is None:
        return None
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    height, width = picture.shape[-2:] if isinstance(picture, Tensor) else picture.shape[:2]
    return height, width


def _pixels(picture: Any, height: int, width: int) -> Tensor:
    """A picture as users have it to [3, H, W] in [-1, 1]."""
    if isinstance(picture, Tensor):
        return picture.float().cpu() * 2 - 1
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    array = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def _mask(mask: Any, height: int, width: int) -> Tensor:
    """A mask as users have it to bool [H, W]."""
    array = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask)
    if array.dtype != bool:
        array = array >= (128 if array.dtype == np.uint8 and array.max(initial=0) > 1 else 0.5)
    if array.shape != (height, width):
        fitted = Image.fromarray(array.astype(np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST)
        array = np.asarray(fitted) > 0
    return torch.from_numpy(array.copy())


def _as(output_type: str, drawn: list[Tensor]) -> Any:
    """Pixels [3, H, W] in [0, 1], or latents, as users asked for them."""
    if output_type in {"pt", "latent"}:
        return _stacked(drawn)
    arrays = [pixels.permute(1, 2, 0).numpy() for pixels in drawn]
    if output_type == "np":
        return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays
    return [Image.fromarray((array * 255).round().astype(np.uint8)) for array in arrays]


def _stacked(tensors: list[Tensor]) -> Any:
    """One tensor where shapes are equal, otherwise the list."""
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
