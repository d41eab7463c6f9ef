"""The encode stage: images become the tokens that an autoencoder makes of them, once and for all.

A stage that was killed goes on after the last shard it finished. Images that cannot be decoded are left out and told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lens_core.diffusion.device import pick_device
from lens_core.errors import ImageError, LensError, Stopped
from lens_core.images import decode, fit
from lens_core.storage.latents import LatentWriter
from lens_core.storage.shards import ShardReader
from lens_train.data.autoencoder_identity import identity
from lens_train.data.sizing import size_rule

if TYPE_CHECKING:
    from torch import Tensor

    from lens_core.contracts.diffusion import Autoencoder
    from lens_core.pipeline.context import StageContext
    from lens_train.stages.encode.config import EncodeStageConfig

__all__ = ["run"]

_SHOWN = 20


def run(config: EncodeStageConfig, context: StageContext) -> dict[str, Any]:
    """Encode the images.

    Raises:
        LensError: none of them can be decoded, or a size does not fit the autoencoder.
        Stopped: the user asked for it; what is done is kept.
    """
    (images,) = context.inputs
    device = pick_device(config.device)
    autoencoder = context.registry.build("autoencoders", config.autoencoder)
    if isinstance(autoencoder, torch.nn.Module):
        autoencoder.to(device)
    size_of = size_rule(config.image_size, stride=autoencoder.stride, seed=context.seed)
    reader = ShardReader(images)
    writer = LatentWriter(context.output, context.state_dir / "latents", max_bytes=int(config.shard_mb * 1e6))
    context.progress.start(len(reader), "images")
    waiting: dict[tuple[int, int], list[tuple[str, Tensor]]] = {}
    failed = 0
    for done, (key, name) in enumerate(zip(reader.columns["key"], reader.columns["name"], strict=True), start=1):
        if writer.has(key):
            continue
        row = reader.by_key(key)
        height, width = size_of(row.height, row.width, key)
        try:
            pixels_HW3 = fit(decode(row.data), height, width)
        except ImageError as error:
            failed += 1
            if failed <= _SHOWN:
                context.progress.note(f"left out {name}: {error}")
            continue
        group = waiting.setdefault((height, width), [])
        group.append((key, torch.from_numpy(pixels_HW3.copy())))
        if len(group) == config.batch_size:
            _encode(autoencoder, waiting.pop((height, width)), writer, config.dtype, device)
        context.progress.update(done, failed=failed)
        if context.should_stop():
            raise Stopped(f"stopped after {done} images; the same command goes on from the last full shard")
    for group in waiting.values():
        _encode(autoencoder, group, writer, config.dtype, device)
    reader.close()
    count = writer.close(reader.columns["key"])
    if not count:
        raise LensError(f"{context.name}: not one of {len(reader)} images could be decoded")
    return {"latents": count, "failed": failed, "autoencoder": identity(autoencoder), "stride": autoencoder.stride}


@torch.no_grad()
def _encode(
    autoencoder: Autoencoder,
    group: list[tuple[str, Tensor]],
    writer: LatentWriter,
    dtype: str,
    device: torch.device,
) -> None:
    pixels_BCHW = torch.stack([pixels for _, pixels in group]).permute(0, 3, 1, 2).to(device, torch.float32)
    height, width = pixels_BCHW.shape[-2:]
    for (key, _), tokens_NC in zip(group, autoencoder.encode(pixels_BCHW / 127.5 - 1), strict=True):
        writer.add(key, tokens_NC.to(getattr(torch, dtype)), height=height, width=width)
