"""`lens caption check`, `diff` and `canaries`: whether captions are any good, what changed, and whose they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_core.storage.artifacts import Artifact
    from lens_core.storage.captions import CaptionRow

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
    from dataclasses import asdict

    from lens_caption.quality.check import check_rows
    from lens_caption.quality.statistics import layer_statistics
    from lens_core.storage.artifacts import load_artifact
    from lens_core.storage.captions import read_captions

    gates = _gates(set_)
    artifact = load_artifact(captions)
    rows = read_captions(artifact, layers=layer)
    image_of, close = _images(artifact)
    try:
        checked = check_rows(rows, gates, image_of=image_of)
    finally:
        close()
    if as_json:
        found = [asdict(item) for item in checked.findings]
        shown: Any = {"layers": layer_statistics(checked.rows), "findings": found, "shared_sentences": checked.shared}
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    for name, numbers in layer_statistics(checked.rows).items():
        statuses = ", ".join(f"{status} {count}" for status, count in numbers["by_status"].items())
        typer.echo(f"{name}: {numbers['images']} images, {statuses}")
        if numbers["words"]:
            spread = "{mean:g} mean, {median:g} median, {p5:g} to {p95:g} for nine in ten".format(**numbers["words"])
            typer.echo(f"  words: {spread}")
        gates_found = dict.fromkeys((item.gate, item.action) for item in checked.findings if item.layer == name)
        for gate, action in gates_found:
            items = [item for item in checked.findings if (item.gate, item.layer) == (gate, name)]
            typer.echo(f"  {gate}: {len({item.key for item in items})} to {action}")
            for item in items[:examples]:
                typer.echo(f"    {item.key[:12]} {item.reason}: {_printable(item.excerpt)}")


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

    from lens_caption.quality.diff import diff_layers
    from lens_caption.quality.diff_page import diff_page, diff_table
    from lens_core.errors import ConfigError
    from lens_core.storage import urls
    from lens_core.storage.artifacts import load_artifact

    first, second = load_artifact(a), load_artifact(b)
    (name_a, rows_a), (name_b, rows_b) = (
        _one_layer(first, layer_a, "--layer-a"),
        _one_layer(second, layer_b, "--layer-b"),
    )
    found = diff_layers(rows_a, rows_b, samples=samples, seed=seed)
    if not found.both:
        raise ConfigError(f"{a} and {b} have no image in common")
    names = (f"{first.name}/{name_a}", f"{second.name}/{name_b}")
    if as_json:
        typer.echo(json.dumps({"a": names[0], "b": names[1], "diff": found.to_json()}, indent=2, ensure_ascii=False))
    else:
        table = diff_table(found, names)
        widths = [max(len(row[column]) for row in table) for column in range(2)]
        for what, one, other in table:
            typer.echo(f"{what:{widths[0]}}  {one:{widths[1]}}  {_printable(other)}".rstrip())
    if output:
        image_of, close = _images(first)
        try:
            urls.write_bytes(output, diff_page(found, names, image_of).encode())
        finally:
            close()
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
    from lens_core.config.overrides import apply_override
    from lens_core.errors import ConfigError

    block: dict[str, object] = {}
    for text in settings or ():
        apply_override(block, text)
    try:
        return GatesConfig.model_validate(block)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(first["msg"], file="--set", key=".".join(map(str, first["loc"]))) from error


def _one_layer(artifact: Artifact, layer: str | None, option: str) -> tuple[str, list[CaptionRow]]:
    from lens_core.errors import ConfigError
    from lens_core.storage.captions import read_captions

    rows = read_captions(artifact, layers=None if layer is None else [layer])
    names = sorted({row.layer for row in rows})
    if len(names) > 1:
        raise ConfigError(f"{artifact.url} has the layers {', '.join(names)}; choose one", file=option)
    return (names or [layer or ""])[0], rows


def _images(artifact: Artifact) -> tuple[Callable[[str], bytes], Callable[[], None]]:
    """How to read the images that captions belong to, and how to close them."""
    from lens_core.storage.shards import ShardReader

    reader = ShardReader(artifact.parent("images"))
    return (lambda key: bytes(reader.by_key(key).data)), reader.close


def _printable(text: str) -> str:
    """Captions are somebody else's text: nothing in them may steer the terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
