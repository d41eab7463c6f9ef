"""The door: what this package offers, by name. It imports nothing heavy and opens none of the modules it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.hookspecs import hookimpl
from lens_core.specs import CaptionerSpec, DatasetSpec, ModelSpec, SamplerSpec

if TYPE_CHECKING:
    from collections.abc import Iterator


@hookimpl
def lens_captioners() -> Iterator[CaptionerSpec]:
    yield CaptionerSpec(
        name="acme-palette",
        summary="Names the shape and the main colours of any picture.",
        config="lens_acme.configs:PaletteConfig",
        target="lens_acme.captioner:Palette",
    )


@hookimpl
def lens_datasets() -> Iterator[DatasetSpec]:
    yield DatasetSpec(
        name="acme-stripes",
        summary="Striped pictures in two colours, in any number.",
        config="lens_acme.configs:StripesConfig",
        target="lens_acme.dataset:Stripes",
    )


@hookimpl
def lens_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="acme-mlp",
        summary="A network that looks at one token at a time and at the mean of the text.",
        config="lens_acme.configs:MlpConfig",
        target="lens_acme.model:Mlp",
        extra="lens-acme[diffusion]",
    )


@hookimpl
def lens_samplers() -> Iterator[SamplerSpec]:
    yield SamplerSpec(
        name="acme-cosine",
        summary="Euler steps on a cosine grid: short at both ends, long in the middle.",
        config="lens_acme.configs:CosineConfig",
        target="lens_acme.sampler:Cosine",
        extra="lens-acme[diffusion]",
    )
