"""`lens caption FILE…`: try a captioner on single images before a whole run.

The request is the one a pipeline would send, so what is previewed here is what runs there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Try a captioner on single images.", add_completion=False, rich_markup_mode=None)


@app.command()
def caption(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Images to caption.")],
    captioner: Annotated[str, typer.Option(help="A captioner's name; see `lens plugins list`.")] = "openai",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One of the captioner's options.")
    ] = None,
) -> None:
    """Caption single images and print the texts."""
    from pydantic import ValidationError

    from lens_core.config.overrides import apply_override
    from lens_core.contracts import ImageItem
    from lens_core.errors import ConfigError
    from lens_core.registry import load_registry

    registry = load_registry()
    block: dict[str, object] = {"type": captioner}
    for text in set_ or ():
        apply_override(block, text)
    try:
        config = registry.parse("captioners", block)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            first["msg"], file=f"--captioner {captioner}", key=".".join(map(str, first["loc"]))
        ) from error
    registry.require_libraries("captioners", captioner)
    built = registry.build("captioners", config)
    items = [ImageItem(key=hashlib.sha256(data).hexdigest(), data=data) for data in (f.read_bytes() for f in files)]
    try:
        for file, outcome in zip(files, built.caption(items), strict=True):
            typer.echo(f"{file}: {outcome.text if outcome.status == 'ok' else f'{outcome.status}: {outcome.detail}'}")
    finally:
        built.close()
