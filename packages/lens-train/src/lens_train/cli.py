"""`lens train …`: ask a training run about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    help="Ask training runs about themselves; `lens run` is what trains.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def _root() -> None:
    """A group, though it has one command as yet."""


@app.command()
def seen(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    stage: Annotated[str, typer.Argument(help="The train stage.")],
    step: Annotated[int, typer.Option(min=1, help="Which optimiser step, counted from 1 as in the metrics.")],
    ranks: Annotated[int, typer.Option(min=1, help="How many ranks shared it; tells who saw which sample.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Print which samples a step was trained on."""
    from lens_core.pipeline.runner import STATE
    from lens_train.planning.kept import kept_plan
    from lens_train.planning.seen import seen as seen_samples
    from lens_train.planning.seen import seen_lines

    kept = kept_plan(run / STATE / f"{stage}.plan")
    samples = seen_samples(kept.manifest, kept.plan, step - 1, packs_per_step=kept.packs_per_step, world=ranks)
    for line in seen_lines(samples, as_json=as_json):
        typer.echo(line)
