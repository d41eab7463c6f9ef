"""`lens caption review CAPTIONS`: a page on this machine where a person accepts, edits or rejects captions."""

from __future__ import annotations

import getpass
import os
import signal
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["review"]


class Picked(StrEnum):
    """Which captions are shown."""

    random = "random"
    repetitive = "repetitive"
    shortest = "shortest"
    longest = "longest"
    failed = "failed"
    stored = "stored"


class Undecided(StrEnum):
    """What becomes of captions that nobody decided about."""

    keep = "keep"
    drop = "drop"


def review(
    captions: Annotated[str, typer.Argument(help="Folder of a caption stage, such as runs/photos/dense.")],
    layer: Annotated[str | None, typer.Option(help="Which layer, if there are several.")] = None,
    decisions: Annotated[
        Path | None, typer.Option(help="File that decisions are appended to. [default: review-LAYER.jsonl]")
    ] = None,
    pick: Annotated[Picked, typer.Option(help="Which captions come first.")] = Picked.random,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many captions.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the random choice.")] = 0,
    reviewer: Annotated[str | None, typer.Option(help="Your name in the decisions. [default: user name]")] = None,
    publish: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="At the end, write the reviewed layer there.")
    ] = None,
    undecided: Annotated[
        Undecided, typer.Option(help="With --publish: captions that nobody decided about.")
    ] = Undecided.keep,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes a free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Accept, edit or reject captions in the browser; decisions become a layer of their own."""
    from collections import Counter

    from lens_caption.layers import sources
    from lens_caption.review.decisions import DecisionLog
    from lens_caption.review.layer import only_layer
    from lens_caption.review.publish import publish_layer, refuse_other_folder
    from lens_caption.review.server import ReviewServer
    from lens_caption.review.session import Session, pick_samples
    from lens_core.storage.artifacts import load_artifact

    artifact = load_artifact(captions)
    source = sources([artifact])
    layer = only_layer(artifact, layer)
    if publish:
        refuse_other_folder(publish)
    samples = pick_samples(artifact, layer, pick=pick.value, count=count, seed=seed)
    path = decisions or Path(f"review-{_file_name(layer)}.jsonl")
    log = DecisionLog(path, reviewer if reviewer is not None else _user())
    server = ReviewServer(Session(samples, layer, source.images, log), port=port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        thread.start()
        typer.echo(f"{len(samples)} captions of the layer {layer!r}; decisions go to {path}")
        typer.echo(f"open {server.url}")
        typer.echo("end the review with Ctrl+C")
        if open_ and os.environ.get("DISPLAY", os.environ.get("WAYLAND_DISPLAY", "")):
            import webbrowser

            webbrowser.open(server.url)
        while not stopped.wait(0.5):
            pass
    finally:
        server.shutdown()
        server.server_close()
        log.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    actions = Counter(decision.action for decision in log.decisions.values() if decision.layer == layer)
    typer.echo(f"\ndecided: {', '.join(f'{actions[name]} {name}' for name in ('accept', 'edit', 'reject'))}")
    if publish:
        publish_layer(
            publish,
            artifact,
            log.decisions,
            reviewed=layer,
            layer=f"{layer}-reviewed",
            undecided=undecided.value,
        )
        typer.echo(f"wrote the layer {layer + '-reviewed'!r} to {publish}")
    else:
        typer.echo(
            f"use them in a pipeline: {{name: reviewed, type: caption-review, source: {artifact.name}, ", nl=False
        )
        typer.echo(f"decisions: {path.resolve()}}}")


def _file_name(layer: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in layer)[:80]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
