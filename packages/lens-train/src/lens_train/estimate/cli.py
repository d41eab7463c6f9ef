"""`lens plan`: what a recipe's training takes."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def plan(
    file: Annotated[str, typer.Argument(metavar="RECIPE", help="The pipeline's YAML file.")],
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs to plan for.")] = "1,8,64,512",
    gpu: Annotated[str, typer.Option(help="Their kind, for its peak in bfloat16.")] = "H100",
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1, help="The share of the peak that the model's FLOPs reach.")
    ] = 0.35,
    text_tokens: Annotated[int, typer.Option(min=0, help="Tokens of a caption, in the mean.")] = 200,
    side: Annotated[int, typer.Option(min=16, help="Side of images that keep their own size, in the mean.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a value of the recipe.")
    ] = None,
) -> None:
    """Say what each train stage takes: parameters, memory per GPU, FLOPs and time. Reads no data and no weights."""
    import json
    from dataclasses import asdict

    from lens_core.config.pipeline import load_pipeline
    from lens_core.errors import ConfigError
    from lens_core.registry import load_registry
    from lens_train.estimate.plan import plan_stages
    from lens_train.estimate.table import print_plans
    from lens_train.watch.flops import peak_of

    try:
        ranks = [int(number) for number in gpus.split(",")]
    except ValueError:
        ranks = []
    if not ranks or min(ranks) < 1:
        raise ConfigError(f"--gpus takes numbers such as 1,8,64, not {gpus!r}")
    registry = load_registry()
    pipeline = load_pipeline(file, registry, set_ or ())
    plans = plan_stages(pipeline, registry, ranks=ranks, peak=peak_of(gpu), mfu=mfu, text_tokens=text_tokens, side=side)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in plans], indent=2))
    else:
        print_plans(plans, gpu=gpu, mfu=mfu)
