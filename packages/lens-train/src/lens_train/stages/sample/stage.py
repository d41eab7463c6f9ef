"""The sample stage: prompts to pictures, each with a receipt that says how to draw it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens_core import __version__
from lens_core.diffusion.device import pick_device
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.receipt import png_with_receipt
from lens_core.diffusion.text_to_image import Request, generate

if TYPE_CHECKING:
    from lens_core.pipeline.context import StageContext
    from lens_train.stages.sample.config import SampleStageConfig

__all__ = ["SAMPLES", "run"]

SAMPLES = "samples.json"


def run(config: SampleStageConfig, context: StageContext) -> dict[str, Any]:
    """Draw every prompt with every model; the same prompt has the same noise for all models."""
    rewritten = list(config.prompts)
    if config.rewriter:
        rewritten = context.registry.build("rewriters", config.rewriter).rewrite(config.prompts, seed=config.seed)
    device = pick_device(config.device)
    context.progress.start(len(context.inputs) * len(config.prompts) * config.per_prompt, "pictures")
    entries: list[dict[str, Any]] = []
    for artifact in context.inputs:
        model = load_model_folder(artifact.url, registry=context.registry).to(device)
        sampler = model.chosen_sampler(config.sampler, config.steps)
        height, width = config.height or model.image_size[0], config.width or model.image_size[1]
        numbers = [(p, i) for p in range(len(config.prompts)) for i in range(config.per_prompt)]
        requests = [
            Request(prompt=rewritten[p], height=height, width=width, seed=config.seed, index=p * config.per_prompt + i)
            for p, i in numbers
        ]
        done = len(entries)
        images = generate(
            model,
            requests,
            sampler=sampler,
            guidance=config.guidance,
            on_batch=lambda count, done=done: context.progress.update(done + count),  # type: ignore[misc]
        )
        for (p, _), request, image in zip(numbers, requests, images, strict=True):
            path = f"{artifact.name}/{request.index:04d}.png"
            receipt = {
                "prompt": config.prompts[p],
                "rewritten_prompt": rewritten[p],
                "seed": config.seed,
                "index": request.index,
                "sampler": sampler.model_dump(mode="json"),
                "guidance": model.guidance if config.guidance is None else config.guidance,
                "model": artifact.hash,
                "model_folder": artifact.url,
                "lens": __version__,
            }
            context.output.write_bytes(path, png_with_receipt(image, receipt))
            entries.append({"path": path, "height": height, "width": width, **receipt, "model": artifact.name})
    context.output.write_json(SAMPLES, {"format_version": 1, "samples": entries})
    return {"pictures": len(entries)}
