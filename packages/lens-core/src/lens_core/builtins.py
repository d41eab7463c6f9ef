"""The door of lens-core: the components it brings, found through the same entry point as everybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.hookspecs import hookimpl
from lens_core.specs import (
    AutoencoderSpec,
    DatasetSpec,
    FilterSpec,
    ModelSpec,
    RewriterSpec,
    SamplerSpec,
    StageSpec,
    TextEncoderSpec,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "lens_autoencoders",
    "lens_datasets",
    "lens_filters",
    "lens_models",
    "lens_rewriters",
    "lens_samplers",
    "lens_stages",
    "lens_text_encoders",
]

_DIFFUSION = "lens-core[diffusion]"
_IMAGES = "lens-core[images]"


@hookimpl
def lens_datasets() -> Iterator[DatasetSpec]:
    """Images in folders, tars and tables, and a procedural world."""
    yield DatasetSpec(
        name="image-folder",
        summary="The images below a folder or bucket.",
        config="lens_core.datasets.image_folder.config:ImageFolderConfig",
        target="lens_core.datasets.image_folder.dataset:ImageFolder",
        extra=_IMAGES,
    )
    yield DatasetSpec(
        name="webdataset",
        summary="Images in tar files as WebDataset writes them, Lens's own shards included.",
        config="lens_core.datasets.webdataset.config:WebDatasetConfig",
        target="lens_core.datasets.webdataset.dataset:WebDataset",
        extra=_IMAGES,
    )
    yield DatasetSpec(
        name="parquet",
        summary="Images in a column of Parquet files, as bytes or as paths.",
        config="lens_core.datasets.parquet.config:ParquetConfig",
        target="lens_core.datasets.parquet.dataset:Parquet",
        extra=_IMAGES,
    )
    yield DatasetSpec(
        name="huggingface",
        summary="A dataset that Hugging Face datasets has saved to disk.",
        config="lens_core.datasets.huggingface.config:HuggingFaceConfig",
        target="lens_core.datasets.huggingface.dataset:HuggingFace",
        extra=_IMAGES,
    )
    yield DatasetSpec(
        name="scenes",
        summary="Procedural scenes of coloured shapes with exact scene graphs, in any number.",
        config="lens_core.datasets.scenes.config:ScenesConfig",
        target="lens_core.datasets.scenes.dataset:Scenes",
        extra=_IMAGES,
    )


@hookimpl
def lens_filters() -> Iterator[FilterSpec]:
    """The nine steps of the paper's cleaning; three of them run a model that the user brings."""
    yield FilterSpec(
        name="decodable",
        summary="Drops images that cannot be decoded completely.",
        config="lens_core.filters.decodable.config:DecodableConfig",
        target="lens_core.filters.decodable.filter:Decodable",
        extra=_IMAGES,
    )
    yield FilterSpec(
        name="min-area",
        summary="Drops images with too few pixels.",
        config="lens_core.filters.min_area.config:MinAreaConfig",
        target="lens_core.filters.min_area.filter:MinArea",
        extra=_IMAGES,
    )
    yield FilterSpec(
        name="clarity",
        summary="Drops blurred images, by the variance of the Laplacian.",
        config="lens_core.filters.clarity.config:ClarityConfig",
        target="lens_core.filters.clarity.filter:Clarity",
        extra=_IMAGES,
    )
    yield FilterSpec(
        name="entropy",
        summary="Drops images with little in them, by the entropy of the grey histogram.",
        config="lens_core.filters.entropy.config:EntropyConfig",
        target="lens_core.filters.entropy.filter:Entropy",
        extra=_IMAGES,
    )
    yield FilterSpec(
        name="luminance",
        summary="Drops images that are too dark or too bright.",
        config="lens_core.filters.luminance.config:LuminanceConfig",
        target="lens_core.filters.luminance.filter:Luminance",
        extra=_IMAGES,
    )
    yield FilterSpec(
        name="exact-duplicates",
        summary="Drops images whose pixels, or bytes, are those of an earlier one.",
        config="lens_core.filters.exact_duplicates.config:ExactDuplicatesConfig",
        target="lens_core.filters.exact_duplicates.filter:ExactDuplicates",
        extra=_IMAGES,
    )
    yield FilterSpec(
        name="near-duplicates",
        summary="Drops images that look like an earlier one: compressed again, scaled, slightly trimmed.",
        config="lens_core.filters.near_duplicates.config:NearDuplicatesConfig",
        target="lens_core.filters.near_duplicates.filter:NearDuplicates",
        extra=_IMAGES,
    )
    yield FilterSpec(
        name="embedding-duplicates",
        summary="Drops images whose embedding by your vision model is nearly that of an earlier one.",
        config="lens_core.filters.embedding_duplicates.config:EmbeddingDuplicatesConfig",
        target="lens_core.filters.embedding_duplicates.filter:EmbeddingDuplicates",
        extra=_IMAGES,
    )
    yield FilterSpec(
        name="nsfw",
        summary="Drops images that your classifier finds not safe for work.",
        config="lens_core.filters.nsfw.config:NsfwConfig",
        target="lens_core.filters.nsfw.filter:Nsfw",
        extra=_IMAGES,
    )
    yield FilterSpec(
        name="aesthetics",
        summary="Drops images to which your model gives a low aesthetic score.",
        config="lens_core.filters.aesthetics.config:AestheticsConfig",
        target="lens_core.filters.aesthetics.filter:Aesthetics",
        extra=_IMAGES,
    )
    yield FilterSpec(
        name="watermark",
        summary="Drops images on which your classifier sees a watermark.",
        config="lens_core.filters.watermark.config:WatermarkConfig",
        target="lens_core.filters.watermark.filter:Watermark",
        extra=_IMAGES,
    )


@hookimpl
def lens_models() -> Iterator[ModelSpec]:
    """The Lens denoiser."""
    yield ModelSpec(
        name="lens",
        summary="The Lens rectified-flow transformer, in the sizes nano, 100m, toy-1.2b and 3.8b.",
        config="lens_core.diffusion.models.lens.config:LensModelConfig",
        target="lens_core.diffusion.models.lens.model:build",
        extra=_DIFFUSION,
    )


@hookimpl
def lens_autoencoders() -> Iterator[AutoencoderSpec]:
    """Pixels as they are, and the two families of diffusers' image autoencoders."""
    yield AutoencoderSpec(
        name="pixels",
        summary="No compression: a token is a patch of pixels.",
        config="lens_core.diffusion.autoencoders.pixels.config:PixelsConfig",
        target="lens_core.diffusion.autoencoders.pixels.autoencoder:Pixels",
        extra=_DIFFUSION,
    )
    yield AutoencoderSpec(
        name="flux2",
        summary="The FLUX.2 autoencoder of the released checkpoints: a token is 16x16 pixels in 128 channels.",
        config="lens_core.diffusion.autoencoders.flux2.config:Flux2Config",
        target="lens_core.diffusion.autoencoders.flux2.autoencoder:Flux2Autoencoder",
        extra=_DIFFUSION,
    )
    yield AutoencoderSpec(
        name="autoencoder-kl",
        summary="Any AutoencoderKL of diffusers, such as those of Stable Diffusion 3 and FLUX.1.",
        config="lens_core.diffusion.autoencoders.autoencoder_kl.config:KLConfig",
        target="lens_core.diffusion.autoencoders.autoencoder_kl.autoencoder:KLAutoencoder",
        extra=_DIFFUSION,
    )


@hookimpl
def lens_text_encoders() -> Iterator[TextEncoderSpec]:
    """A small encoder that is trained with the denoiser, and pretrained language models, frozen."""
    yield TextEncoderSpec(
        name="small",
        summary="A small transformer over byte-pair tokens, trained together with the denoiser.",
        config="lens_core.diffusion.text_encoders.small.config:SmallTextEncoderConfig",
        target="lens_core.diffusion.text_encoders.small.encoder:SmallTextEncoder",
        extra=_DIFFUSION,
    )
    yield TextEncoderSpec(
        name="causal-lm",
        summary="Chosen layers of any Hugging Face causal language model, such as Qwen3, frozen.",
        config="lens_core.diffusion.text_encoders.causal_lm.config:CausalLMConfig",
        target="lens_core.diffusion.text_encoders.causal_lm.encoder:CausalLMEncoder",
        extra=_DIFFUSION,
    )
    yield TextEncoderSpec(
        name="gpt-oss",
        summary="gpt-oss with the released prompt template, frozen: the encoder of the released weights.",
        config="lens_core.diffusion.text_encoders.gpt_oss.config:GptOssConfig",
        target="lens_core.diffusion.text_encoders.gpt_oss.encoder:GptOssEncoder",
        extra=_DIFFUSION,
    )


@hookimpl
def lens_samplers() -> Iterator[SamplerSpec]:
    """Euler's method, and one of second order."""
    yield SamplerSpec(
        name="flow-euler",
        summary="Euler steps along the flow, on the released time grid or a plain one.",
        config="lens_core.diffusion.samplers.flow_euler.config:FlowEulerConfig",
        target="lens_core.diffusion.samplers.flow_euler.sampler:FlowEuler",
        extra=_DIFFUSION,
    )
    yield SamplerSpec(
        name="flow-multistep",
        summary="Second-order steps along the flow at one velocity call each, on the same time grids.",
        config="lens_core.diffusion.samplers.flow_multistep.config:FlowMultistepConfig",
        target="lens_core.diffusion.samplers.flow_multistep.sampler:FlowMultistep",
        extra=_DIFFUSION,
    )


@hookimpl
def lens_rewriters() -> Iterator[RewriterSpec]:
    """An expander by rule, for the procedural world."""
    yield RewriterSpec(
        name="scene-expander",
        summary="Completes a short scene prompt by rule: sizes, places, background, in the dense style.",
        config="lens_core.rewriters.scene_expander.config:SceneExpanderConfig",
        target="lens_core.rewriters.scene_expander.rewriter:SceneExpander",
    )


@hookimpl
def lens_stages() -> Iterator[StageSpec]:
    """The stage that brings images in."""
    yield StageSpec(
        name="ingest",
        summary="Read a source of images, filter it, and store it as shards.",
        config="lens_core.stages.ingest.config:IngestStageConfig",
        target="lens_core.stages.ingest.stage:run",
        fingerprint="lens_core.stages.ingest.stage:fingerprint",
        makes="images",
        extra=_IMAGES,
    )
