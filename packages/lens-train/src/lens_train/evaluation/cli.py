"""`lens evaluate`: measure a model folder without a pipeline."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, such as runs/quickstart/model-dense.")],
    suite: Annotated[str, typer.Option(help="What is asked: scenes, geneval, dpg, or another evaluator's name.")],
    prompts: Annotated[str | None, typer.Option(help="The suite's file of prompts.")] = None,
    detector: Annotated[str | None, typer.Option(help="geneval: folder of an object detector.")] = None,
    clip: Annotated[str | None, typer.Option(help="geneval: folder of a CLIP, for colours.")] = None,
    base_url: Annotated[str | None, typer.Option(help="dpg: who answers questions; the URL up to /v1.")] = None,
    judge: Annotated[str | None, typer.Option(help="dpg: the vision model's name at the endpoint.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Pictures of each prompt.")] = None,
    per_skill: Annotated[int | None, typer.Option(min=1, help="Prompts of each skill.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width in pixels; default: the model's.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting of the suite.")
    ] = None,
    rewriter: Annotated[
        str | None, typer.Option(help="Rewrites what the model is given: one without settings, such as scene-expander.")
    ] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="The folder for scores, answers and sheets.")
    ] = "evaluation",
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampler steps; default: the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=100, help="Classifier-free guidance; 1: off.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; default: float32 for the denoiser, the rest as stored."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Measure how well a model follows prompts, skill by skill."""
    from lens_train.evaluation.command import evaluate_model

    options = {
        "--prompts": prompts,
        "--detector": detector,
        "--clip": clip,
        "--base-url": base_url,
        "--judge": judge,
        "--samples": samples,
        "--per-skill": per_skill,
        "--size": size,
    }
    evaluate_model(
        model,
        suite=suite,
        options={name: value for name, value in options.items() if value is not None},
        settings=set_ or [],
        rewriter=rewriter,
        output=output,
        seed=seed,
        steps=steps,
        guidance=guidance,
        dtype=dtype,
        device=device,
    )
