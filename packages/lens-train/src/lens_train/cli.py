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


@app.command()
def seen(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    stage: Annotated[str, typer.Argument(help="The train stage.")],
    step: Annotated[int, typer.Option(min=1, help="Which optimiser step, counted from 1 as in the metrics.")],
    ranks: Annotated[int, typer.Option(min=1, help="How many ranks shared it; tells who saw which sample.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Print which samples a step was trained on."""
    from lens_core.pipeline.run_folder import STATE
    from lens_train.planning.kept import kept_plan
    from lens_train.planning.seen import seen as seen_samples
    from lens_train.planning.seen import seen_lines

    kept = kept_plan(run / STATE / f"{stage}.plan")
    samples = seen_samples(kept.manifest, kept.plan, step - 1, packs_per_step=kept.packs_per_step, world=ranks)
    for line in seen_lines(samples, as_json=as_json):
        typer.echo(line)


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(metavar="RUN/STAGE...", help="What train stages made.")],
    output: Annotated[str, typer.Option("--output", "-o", help="The page to write.")],
) -> None:
    """Write one page about several training runs: curves, pictures, speed, and the settings that differ."""
    from lens_core.storage import urls
    from lens_core.storage.artifacts import load_artifact
    from lens_train.report.compare import compare_page

    urls.write_bytes(output, compare_page({name: load_artifact(name) for name in models}).encode())
