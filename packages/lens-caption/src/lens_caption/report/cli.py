"""`lens caption report CAPTIONS…`: the page of the caption-report stage, for captions that are there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    captions: Annotated[list[str], typer.Argument(help="Folders of caption stages, such as runs/photos/dense.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The page; a .json with the numbers is written beside it.")
    ] = Path("captions.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Captions",
    samples: Annotated[int, typer.Option(min=0, max=100, help="Images shown of each kind.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the random samples.")] = 0,
) -> None:
    """Statistics and a gallery of captions, as one HTML page that works offline."""
    from lens_caption.report.config import CaptionReportStageConfig
    from lens_caption.report.stage import report_on
    from lens_core.storage import urls
    from lens_core.storage.artifacts import load_artifact

    config = CaptionReportStageConfig(name="report", source=captions, title=title[:120] or "Captions", samples=samples)
    summary, page = report_on(config, [load_artifact(url) for url in captions], seed=seed)
    numbers = output.with_suffix(".json")
    urls.write_bytes(str(output), page.encode())
    urls.write_bytes(str(numbers), (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
    for name, layer in summary["layers"].items():
        cost = f", ${float(layer['cost_usd']):,.2f}" if float(layer["cost_usd"]) else ""
        typer.echo(f"{name}: {layer['ok']:,} of {layer['images']:,} images have a caption{cost}")
    typer.echo(f"wrote {output} and {numbers}")
