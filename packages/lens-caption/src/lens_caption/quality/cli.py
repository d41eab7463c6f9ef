"""`lens caption check`, `diff` and `canaries`: whether captions are any good, what changed, and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.storage.artifacts import Artifact

__all__ = ["add_commands"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_commands(app: typer.Typer) -> None:
    """Put the commands into the group `lens caption`."""
    app.command()(check)
    app.command()(diff)
    app.command()(canaries)


def check(
    captions: Annotated[str, typer.Argument(metavar="CAPTIONS", help="A caption stage's folder: runs/RUN/STAGE.")],
    layer: Annotated[list[str] | None, typer.Option(help="Only this layer; may be repeated.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A gate's option, as in length.min_words=20.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Captions shown for each gate.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Put captions through the gates and print what they find; nothing is changed."""
    import json
    import tempfile
    from dataclasses import asdict

    from lens_caption.layers import ImageLookup, caption_rows
    from lens_caption.quality.check import Check, Finding
    from lens_caption.quality.statistics import LayerStatistics
    from lens_caption.quality.text import printable
    from lens_core.storage.artifacts import load_artifact

    gates = _gates(set_)
    artifact = load_artifact(captions)
    _refuse_unknown(artifact, layer or ())
    statistics = LayerStatistics()
    counts: dict[tuple[str, str, str], int] = {}
    shown: dict[tuple[str, str, str], list[Finding]] = {}
    with tempfile.TemporaryDirectory(prefix="lens-check-") as folder:
        images = ImageLookup(Path(folder) / "images.sqlite", artifact.parent("images"))
        check = Check(lambda: caption_rows(artifact, layer), gates, Path(folder), image_of=images.data)
        try:
            for row, findings in check:
                statistics.add(row)
                for item in findings:
                    found = shown.setdefault((item.layer, item.gate, item.action), [])
                    if as_json or len(found) < examples:
                        found.append(item)
                for place in {(item.layer, item.gate, item.action) for item in findings}:
                    counts[place] = counts.get(place, 0) + 1
        finally:
            images.close()
    if as_json:
        listed = [asdict(item) for items in shown.values() for item in items]
        told: Any = {"layers": statistics.to_json(), "findings": listed, "shared_sentences": check.shared}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for name, numbers in statistics.to_json().items():
        statuses = ", ".join(f"{status} {count}" for status, count in numbers["by_status"].items())
        typer.echo(f"{name}: {numbers['images']} images, {statuses}")
        if numbers["words"]:
            spread = "{mean:g} mean, {median:g} median, {p5:g} to {p95:g} for nine in ten".format(**numbers["words"])
            typer.echo(f"  words: {spread}")
        for (of, gate, action), count in counts.items():
            if of == name:
                typer.echo(f"  {gate}: {count} to {action}")
                for item in shown[of, gate, action]:
                    typer.echo(f"    {item.key[:12]} {printable(f'{item.reason}: {item.excerpt}')}")


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A caption stage's folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, of the same images.")],
    layer_a: Annotated[str | None, typer.Option(help="Which layer of A; needed if there are several.")] = None,
    layer_b: Annotated[str | None, typer.Option(help="Which layer of B.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="An HTML page to write, with samples.")] = None,
    samples: Annotated[int, typer.Option(min=0, max=1000, help="Images on the page.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of the images drawn at random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare two caption layers of the same images: lengths, refusals, tokens, what the texts share."""
    import json

    from lens_caption.layers import StoredImages, caption_rows
    from lens_caption.quality.diff import diff_layers
    from lens_caption.quality.diff_page import diff_page, diff_table
    from lens_caption.quality.text import printable
    from lens_core.errors import ConfigError
    from lens_core.storage import urls
    from lens_core.storage.artifacts import load_artifact

    first, second = load_artifact(a), load_artifact(b)
    name_a, name_b = _one_layer(first, layer_a, "--layer-a"), _one_layer(second, layer_b, "--layer-b")
    found = diff_layers(caption_rows(first, [name_a]), caption_rows(second, [name_b]), samples=samples, seed=seed)
    if not found.both:
        raise ConfigError(f"{a} and {b} have no image in common")
    names = (f"{first.name}/{name_a}", f"{second.name}/{name_b}")
    if as_json:
        typer.echo(json.dumps({"a": names[0], "b": names[1], "diff": found.to_json()}, indent=2, ensure_ascii=False))
    else:
        table = diff_table(found, names)
        widths = [max(len(row[column]) for row in table) for column in range(2)]
        for what, one, other in table:
            typer.echo(f"{what:{widths[0]}}  {one:{widths[1]}}  {printable(other)}".rstrip())
    if output:
        with StoredImages(first.parent("images")) as images:
            rows = images.find(pair.key for pair in found.samples)
            page = diff_page(found, names, lambda key: images.read_bytes(rows[key]))
        urls.write_bytes(output, page.encode())
        typer.echo(f"{output}: {len(found.samples)} samples", err=as_json)


def canaries(
    captioner: Annotated[str, typer.Option(help="A captioner's name; see `lens plugins list`.")] = "openai",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One of the captioner's options.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, max=6, help="Pairs of generated images.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often all of them are sent at once.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the images and of their order.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Send generated images, many at once, and refuse a server whose captions belong to other images."""
    import json
    from dataclasses import asdict

    from lens_caption.cli import _captioner
    from lens_caption.quality.binding import probe_binding
    from lens_core.registry import load_registry

    registry = load_registry()
    config = _captioner(registry, captioner, set_)
    built = registry.build("captioners", config)
    try:
        report = probe_binding(built.caption, pairs=pairs, rounds=rounds, seed=seed)
    finally:
        built.close()
    if as_json:
        typer.echo(json.dumps({"ok": report.ok, **asdict(report)}, indent=2, ensure_ascii=False))
    report.refuse(getattr(config, "base_url", captioner))
    if not as_json:
        typer.echo(f"good: {report.answered} of {report.asked} canaries were answered, each with its own caption")


def _gates(settings: list[str] | None) -> Any:
    from pydantic import ValidationError

    from lens_caption.quality.config import GatesConfig
    from lens_core.config.base import first_mistake
    from lens_core.config.overrides import apply_override
    from lens_core.errors import ConfigError

    block: dict[str, object] = {}
    for text in settings or ():
        apply_override(block, text)
    try:
        return GatesConfig.model_validate(block)
    except ValidationError as error:
        key, message = first_mistake(error)
        raise ConfigError(message, file="--set", key=key) from error


def _one_layer(artifact: Artifact, layer: str | None, option: str) -> str:
    from lens_caption.layers import layer_names
    from lens_core.errors import ConfigError

    if layer is not None:
        _refuse_unknown(artifact, [layer])
        return layer
    names = layer_names(artifact)
    if len(names) > 1:
        raise ConfigError(f"{artifact.url} has the layers {', '.join(sorted(names))}; choose one", file=option)
    return (names or [""])[0]


def _refuse_unknown(artifact: Artifact, layers: Sequence[str]) -> None:
    from lens_caption.layers import layer_names
    from lens_core.errors import ArtifactError

    there = sorted(layer_names(artifact)) if layers else []
    for name in layers:
        if name not in there:
            raise ArtifactError(f"{artifact.url} has no caption layer {name!r} (it has: {', '.join(there) or 'none'})")
