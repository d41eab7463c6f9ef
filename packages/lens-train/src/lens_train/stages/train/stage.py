"""The train stage: captioned images to a model folder."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from lens_core.diffusion.device import pick_device
from lens_core.diffusion.model_folder import save_model_folder
from lens_train.data.captioned import load_captioned
from lens_train.loop.trainer import METRICS, TENSORBOARD, Trainer

if TYPE_CHECKING:
    from lens_core.pipeline.context import StageContext
    from lens_train.stages.train.config import TrainStageConfig

__all__ = ["run"]


def run(config: TrainStageConfig, context: StageContext) -> dict[str, Any]:
    """Train within the budget and leave a model folder, the metrics and TensorBoard's files.

    Raises:
        LensError: there is nothing to train on, or training diverges.
        Stopped: the user asked for it; the state is saved.
    """
    (captions,) = context.inputs
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    autoencoder = context.registry.build("autoencoders", config.autoencoder)
    size = (config.image_size, config.image_size) if isinstance(config.image_size, int) else config.image_size
    context.progress.start(None, "images decoded")
    data = load_captioned(
        captions,
        layers=config.layers,
        size=size,
        stride=autoencoder.stride,
        seed=context.seed,
        on_image=lambda done, total: context.progress.update(done),
    )
    if data.skipped:
        context.progress.note(
            f"{data.skipped} of {data.skipped + len(data.keys)} images are left out: "
            "they have no caption, or cannot be decoded"
        )
    encoder_class = context.registry.spec("text_encoders", config.text_encoder.type).load_target()
    texts = [text for own in data.captions for text in own]
    encoder = encoder_class.fit(config.text_encoder, texts, seed=context.seed)
    transformer = context.registry.build(
        "models",
        config.model,
        in_channels=autoencoder.channels,
        enc_hidden_dim=encoder.width,
        num_text_layers=encoder.num_layers,
    )
    transformer.init_weights(context.seed)
    trainer = Trainer(
        transformer=transformer.to(device),
        text_encoder=encoder.to(device),
        autoencoder=autoencoder,
        data=data,
        objective=config.objective,
        optimizer=config.optimizer,
        budget=config.budget,
        batch_size=config.batch_size,
        ema_decay=config.ema,
        bf16=config.precision == "bf16",
        device=device,
        seed=context.seed,
        state_dir=context.state_dir,
        save_every_s=config.save_every_s,
        log_every=config.log_every,
    )
    trainer.run(context.progress)
    with trainer.averaged():
        folder = context.output.local_dir("model")
        shutil.rmtree(folder)
        save_model_folder(
            folder,
            transformer=transformer,
            model=config.model,
            text_encoder=encoder,
            autoencoder=autoencoder,
            sampler=config.sampler,
            prediction=config.objective.prediction,
            image_size=data.size,
            guidance=config.guidance,
            guidance_rescale=config.guidance_rescale,
            parents=[{"name": captions.name, "type": captions.type, "hash": captions.hash}],
            licence=config.licence,
        )
    # Copied, not moved: a run killed before its manifest is written goes on from the state, which needs them whole.
    shutil.copy(context.state_dir / METRICS, folder)
    shutil.copytree(context.state_dir / TENSORBOARD, folder / TENSORBOARD)
    context.output.add_folder("", folder)
    counters = asdict(trainer.counters)
    del counters["skipped_in_a_row"]
    return {
        **counters,
        "steps": counters.pop("step"),
        "training_flops": counters.pop("flops"),
        "parameters": sum(parameter.numel() for parameter in trainer.parameters),
        "image_size": list(data.size),
        "training_images": len(data.keys),
        "device": str(device),
    }
