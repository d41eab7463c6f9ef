"""The parts of the model that is trained: fresh ones, or those of a model to go on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import nn

from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion.model_folder import save_model_folder
from lens_train.methods.adapters import add_adapters, finish_adapters, freeze
from lens_train.methods.config import LoraMethod
from lens_train.methods.start import load_start
from lens_train.parallel.meta import meta_copy
from lens_train.parallel.shard import compute_dtype, full_weights, shard
from lens_train.watch.flops import CountedFlops, count_flops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lens_core.config.base import ComponentConfig
    from lens_core.contracts.diffusion import Autoencoder
    from lens_core.pipeline.context import StageContext
    from lens_train.parallel.world import World
    from lens_train.stages.train.config import TrainStageConfig

__all__ = ["Parts", "build_parts"]


@dataclass(kw_only=True)
class Parts:
    """What a model is made of, and what stands in its `lens.json`.

    Args:
        transformer: the denoiser.
        text_encoder: prompts to features.
        autoencoder: pixels to tokens.
        model: the denoiser's config.
        prediction: what its output means.
        sampler: that the finished model recommends.
        guidance: likewise.
        guidance_rescale: likewise.
        image_size: (height, width) that it draws by default; None for the commonest size trained on.
        start: the model that it goes on from.
    """

    transformer: Any
    text_encoder: Any
    autoencoder: Autoencoder
    model: ComponentConfig
    prediction: PredictionConfig
    sampler: ComponentConfig
    guidance: float
    guidance_rescale: bool
    image_size: tuple[int, int] | None = None
    start: str | None = None
    _plain: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)
    _counted: CountedFlops | None = field(default=None, init=False, repr=False)
    recomputed_flops: Callable[[Sequence[int], Sequence[int]], float] | None = field(default=None, init=False)
    """Of the denoiser's blocks, where full activation checkpointing computes them again, and it is known."""

    def flops(self, image_lengths: Sequence[int], text_lengths: Sequence[int]) -> float:
        """Training FLOPs of some samples: of the denoiser, and of the text encoder if that is trained."""
        if self._counted:
            return self._counted(image_lengths, text_lengths)
        trains_text = self.text_encoder.trainable
        own: float = self.transformer.training_flops(image_lengths, text_lengths, text_gradient=trains_text)
        return own + float(self.text_encoder.training_flops(text_lengths))

    def place(self, config: TrainStageConfig, world: World, *, seed: int) -> None:
        """Bring the parts to their device, put adapters on, and shard what is trained."""
        for part in (self.transformer, self.text_encoder, self.autoencoder):
            if isinstance(part, nn.Module):
                part.to(world.device)
        if isinstance(config.method, LoraMethod):
            freeze(self.text_encoder)
        self._plain = {"transformer": meta_copy(self.transformer)}
        if self.text_encoder.trainable:
            self._plain["text_encoder"] = meta_copy(self.text_encoder)
        if isinstance(config.method, LoraMethod):
            add_adapters(self.transformer, config.method, seed=seed)
            self._counted = count_flops(self.transformer)  # frozen weights take no gradient: no formula, a count
        if config.parallel.activation_checkpointing == "full":
            self.recomputed_flops = (
                count_flops(self.transformer, policy="full").plus(self._counted, -1)
                if self._counted
                else getattr(self.transformer, "block_flops", None)
            )
        if hasattr(self.transformer, "choose_attention"):
            self.transformer.choose_attention(world.device, compute_dtype(config.parallel, world.device))
        for name in self._plain:
            shard(getattr(self, name), world, config.parallel)

    def save(
        self,
        folder: Path,
        config: TrainStageConfig,
        world: World,
        *,
        image_size: tuple[int, int],
        parents: list[dict[str, str]],
    ) -> None:
        """Write the model folder, and an adapter's own files; all ranks call this, one writes.

        Args:
            folder: where; nothing is there yet.
            config: of the stage.
            world: who holds the weights.
            image_size: (height, width) that the model draws by default, if none stands in `image_size`.
            parents: the artefacts that it was made from.
        """
        whole = {name: full_weights(getattr(self, name), world) for name in self._plain}
        if not world.is_main:
            return
        plain: dict[str, Any] = {"text_encoder": self.text_encoder}
        with TemporaryDirectory(dir=folder.parent) as adapters:
            for name, module in self._plain.items():
                if name == "transformer" and isinstance(config.method, LoraMethod):
                    plain[name] = finish_adapters(module, config.method, whole[name], Path(adapters))
                else:
                    module.load_state_dict(whole[name], assign=True)
                    plain[name] = module
            save_model_folder(
                folder,
                **plain,
                model=self.model,
                autoencoder=self.autoencoder,
                sampler=self.sampler,
                prediction=self.prediction,
                image_size=self.image_size or image_size,
                guidance=self.guidance,
                guidance_rescale=self.guidance_rescale,
                parents=parents,
                licence=config.licence,
            )
            for file in Path(adapters).iterdir():
                file.rename(folder / file.name)


def build_parts(config: TrainStageConfig, context: StageContext, texts: Iterable[str], start: str | None) -> Parts:
    """The parts to train, on the CPU.

    Args:
        config: of the stage.
        context: its surroundings.
        texts: every caption; read only if a fresh text encoder learns its vocabulary from them.
        start: a model folder to go on from.

    Raises:
        LensError: a part cannot be built or loaded.
    """
    registry = context.registry
    if start:
        loaded = load_start(start, prediction=config.objective.prediction, registry=registry)
        return Parts(
            transformer=loaded.transformer,
            text_encoder=loaded.text_encoder,
            autoencoder=loaded.autoencoder,
            model=registry.parse("models", loaded.lens["model"]),
            prediction=loaded.prediction,
            sampler=config.sampler or loaded.sampler,
            guidance=loaded.guidance if config.guidance is None else config.guidance,
            guidance_rescale=loaded.guidance_rescale if config.guidance_rescale is None else config.guidance_rescale,
            image_size=loaded.image_size,
            start=start,
        )
    autoencoder = registry.build("autoencoders", config.autoencoder)
    encoder_class = registry.spec("text_encoders", config.text_encoder.type).load_target()
    encoder = encoder_class.fit(config.text_encoder, texts, seed=context.seed)
    transformer = registry.build(
        "models",
        config.model,
        in_channels=autoencoder.channels,
        enc_hidden_dim=encoder.width,
        num_text_layers=encoder.num_layers,
    )
    transformer.init_weights(context.seed)
    return Parts(
        transformer=transformer,
        text_encoder=encoder,
        autoencoder=autoencoder,
        model=config.model,
        prediction=config.objective.prediction or PredictionConfig(type="x"),
        sampler=config.sampler or registry.parse("samplers", "flow-euler"),
        guidance=3.0 if config.guidance is None else config.guidance,
        guidance_rescale=bool(config.guidance_rescale),
    )
