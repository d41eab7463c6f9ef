"""A model in memory: its parts, where they are, and who may have the device when they do not fit together."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lens_core.config.checked import checked_component
from lens_core.config.prediction import PredictionConfig
from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_core.config.base import ComponentConfig
    from lens_core.contracts.diffusion import Autoencoder
    from lens_core.registry import Registry

__all__ = ["LoadedModel"]

MAX_TABLES = 4
"""Tables of modulation that are kept. Calls of a few sizes have a few grids; a row is 1.8 MB in bfloat16 at 3.8b."""

PARTS = ("text_encoder", "transformer", "autoencoder")


@dataclass(kw_only=True)
class LoadedModel:
    """The parts of a model folder, ready to draw with.

    Args:
        transformer: the denoiser.
        text_encoder: prompts to features; None where features are given.
        autoencoder: between tokens and pixels.
        sampler: the config of the sampler that the model asks for.
        prediction: what the denoiser's output means.
        image_size: (height, width) in pixels that it was trained on.
        guidance: the guidance scale that the model asks for.
        guidance_rescale: see `lens_core.diffusion.guidance.guide`.
        registry: where further components, such as another sampler, come from.
        lens: the whole `lens.json`.
        url: where it came from.
    """

    transformer: Any
    text_encoder: Any
    autoencoder: Autoencoder
    sampler: ComponentConfig
    image_size: tuple[int, int]
    guidance: float
    guidance_rescale: bool
    registry: Registry
    prediction: PredictionConfig = field(default_factory=lambda: PredictionConfig(type="velocity"))
    lens: dict[str, Any] = field(default_factory=dict)
    url: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"), init=False)
    _turns: bool = field(default=False, init=False)
    _table: bool = field(default=False, init=False)
    _tables: dict[tuple[float, ...], Any] = field(default_factory=dict, init=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's weights."""
        dtype: torch.dtype = next(self.transformer.parameters()).dtype
        return dtype

    def chosen_sampler(self, sampler: ComponentConfig | None = None, steps: int | None = None) -> ComponentConfig:
        """A sampler's config with so many steps; where nothing is said, the model's own sampler and steps.

        Raises:
            ConfigError: that sampler does not take so many steps.
        """
        chosen = sampler or self.sampler
        if steps is None:
            return chosen
        return checked_component("samplers", chosen.model_dump() | {"steps": steps}, self.registry)

    def to(
        self,
        device: torch.device | None = None,
        *,
        take_turns: bool | None = None,
        modulation_table: bool | None = None,
    ) -> LoadedModel:
        """Move the weights. What is left out stays as it was.

        Args:
            device: where to compute.
            take_turns: keep the parts on the CPU, and bring each to the device for its stage only.
            modulation_table: leave the modulation layers, a third of the denoiser, on the CPU, and bring what they
                make of the timesteps of a call.

        Raises:
            ConfigError: a table is asked of a denoiser that cannot make one.
        """
        if modulation_table and not hasattr(self.transformer, "modulation_modules"):
            raise ConfigError(f"{type(self.transformer).__name__} has no modulation that could be computed ahead")
        self.device = self.device if device is None else device
        self._turns = self._turns if take_turns is None else take_turns
        self._table = self._table if modulation_table is None else modulation_table
        self._tables.clear()
        for name in PARTS:
            self._move(name, torch.device("cpu") if self._turns else self.device)
        if hasattr(self.transformer, "choose_attention"):
            self.transformer.choose_attention(self.device, self.dtype)
        return self

    @contextmanager
    def stage(self, name: str) -> Iterator[Any]:
        """The part of that name, on the device.

        Raises:
            ConfigError: the model has no such part.
        """
        part = getattr(self, name)
        if part is None:
            # A released folder names its text encoder, but cannot be encoded with until it is imported.
            remedy = f", or complete {self.url} with `lens import`" if self.lens.get("text_encoder") else ""
            raise ConfigError(f"the model has no {name}: hand over features instead of prompts{remedy}")
        if not self._turns:
            yield part
            return
        self._move(name, self.device)
        try:
            yield part
        finally:
            self._move(name, torch.device("cpu"))

    def modulation(self, times_U: Tensor) -> Any:
        """The denoiser's modulation of these times, if it is to be computed ahead; the same times are kept."""
        if not self._table:
            return None
        key = tuple(times_U.tolist())
        if key not in self._tables:
            while len(self._tables) >= MAX_TABLES:
                del self._tables[next(iter(self._tables))]
            self._tables[key] = self.transformer.modulation(times_U).to(self.device)
        return self._tables[key]

    def forget_modulation(self) -> None:
        """Compute it anew for the next call, because the weights have changed."""
        self._tables.clear()

    def no_text(self) -> list[Tensor]:
        """The features of no text: a tensor [0, E] per layer."""
        if self.text_encoder is not None:
            width, layers = self.text_encoder.width, self.text_encoder.num_layers
        else:
            width = self.transformer.config["enc_hidden_dim"]
            layers = len(self.transformer.config["selected_layer_index"])
        return [torch.zeros(0, width) for _ in range(layers)]

    # What is moved in inference mode could never be trained again, nor take a LoRA.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _move(self, name: str, device: torch.device) -> None:
        part = getattr(self, name)
        if not isinstance(part, nn.Module):
            return  # nothing has weights
        if name != "transformer" or not self._table:
            part.to(device)
            return
        stays = {id(module) for top in self.transformer.modulation_modules() for module in top.modules()}
        for module in part.modules():
            place = torch.device("cpu") if id(module) in stays else device
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(place)
