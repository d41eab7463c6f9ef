"""`lens caption …`: try a captioner on single images, look models up, quote a run, and rehearse it against an endpoint.

What is previewed, quoted and probed is the request that a pipeline would send.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lens_caption.quality.cli import add_commands
from lens_caption.report.cli import report
from lens_caption.review.cli import review

__all__ = ["app"]


class _Commands(TyperGroup):
    """The commands; a file in their place is an old habit, and gets its answer."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None and Path(cmd_name).is_file():
            from lens_core.errors import LensError

            raise LensError(f"to caption a file: lens caption preview {cmd_name}")
        return found


app = typer.Typer(
    cls=_Commands,
    help="Try captioners, look models up, and quote a run before it costs anything.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

add_commands(app)
app.command()(report)
app.command()(review)

CaptionerOption = Annotated[str, typer.Option(help="A captioner's name; see `lens plugins list`.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One of the captioner's options.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def preview(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Images to caption.")],
    captioner: CaptionerOption = "openai",
    set_: SetOption = None,
    caption: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Have this caption of the image corrected, as revise-captions does."),
    ] = None,
) -> None:
    """Caption single images and print the texts."""
    from lens_caption.quality.text import printable
    from lens_core.contracts import ImageItem
    from lens_core.registry import load_registry
    from lens_core.storage.shards import image_key

    registry = load_registry()
    config = _captioner(registry, captioner, set_)
    built = registry.build("captioners", config) if caption is None else _reviser(config, caption)
    items = [ImageItem(key=image_key(data), data=data) for data in (f.read_bytes() for f in files)]
    try:
        for file, outcome in zip(files, built.caption(items), strict=True):
            told = outcome.text if outcome.status == "ok" else f"{outcome.status}: {outcome.detail}"
            typer.echo(f"{file}: {printable(told)}")
    finally:
        built.close()


@app.command()
def quote(
    file: Annotated[str, typer.Argument(metavar="PIPELINE", help="The pipeline's YAML file.")],
    stage: Annotated[str | None, typer.Option(help="Only this caption stage.")] = None,
    pilot: Annotated[
        int, typer.Option(min=0, max=10_000, help="Caption so many images first, which is billed, and measure.")
    ] = 0,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Read only so many headers, drawn at random; default: all.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Your account's requests per minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Your account's tokens per minute.")] = None,
    as_json: JsonOption = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a value of the pipeline file.")
    ] = None,
) -> None:
    """Say what captioning will cost and how long it will take; reads headers only, and buys nothing but a pilot."""
    import json

    from lens_caption.quote import quote_pipeline
    from lens_caption.tables import print_quotes
    from lens_core.config.pipeline import load_pipeline
    from lens_core.registry import load_registry

    registry = load_registry()
    pipeline = load_pipeline(file, registry, set_ or ())
    quotes = quote_pipeline(pipeline, registry, stage=stage, pilot=pilot, sample=sample, rpm=rpm, tpm=tpm)
    if as_json:
        typer.echo(json.dumps([quote.to_json() for quote in quotes], indent=2, ensure_ascii=False))
    else:
        print_quotes(quotes)


@app.command()
def probe(
    captioner: CaptionerOption = "openai",
    set_: SetOption = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="Generated images to send.")] = 20,
    budget: Annotated[str, typer.Option(metavar="DOLLARS", help="What the worst case may cost.")] = "1.00",
    as_json: JsonOption = False,
) -> None:
    """Send a few generated images to a real endpoint and compare what it says with the model's profile."""
    import datetime
    import json

    from lens_caption.captioners.openai.config import OpenAIConfig
    from lens_caption.probe import probe as run_probe
    from lens_caption.profiles import load_profile
    from lens_caption.tables import print_probe
    from lens_core.errors import ConfigError
    from lens_core.registry import load_registry

    config = _captioner(load_registry(), captioner, set_)
    if not isinstance(config, OpenAIConfig):
        raise ConfigError(
            f"the captioner {captioner!r} asks no endpoint; there is nothing to probe", file="--captioner"
        )
    try:
        dollars = Decimal(budget.removeprefix("$"))
    except InvalidOperation as error:
        raise ConfigError(f"{budget!r} is no amount of dollars", file="--budget") from error
    folder = Path(config.profiles) if config.profiles else None
    profile = load_profile(config.model, base_url=config.base_url, folder=folder)
    today = datetime.datetime.now(datetime.UTC).date()
    report = run_probe(config, profile, count=count, budget=dollars, today=today)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        print_probe(report)


@app.command()
def models(
    profiles: Annotated[
        Path | None, typer.Option(help="A folder of your own profiles; default: LENS_CAPTION_PROFILES.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the models that are known: prices, image tokens, dates, and which are soon gone."""
    import datetime
    import json

    from lens_caption.profiles import list_profiles
    from lens_caption.tables import print_profiles

    known = list_profiles(profiles)
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in known], indent=2, ensure_ascii=False))
    else:
        print_profiles(known, datetime.datetime.now(datetime.UTC).date())


def _reviser(config: Any, caption: str) -> Any:
    """A captioner that corrects a caption; of what the recipe gives, the first layer is printed."""
    from lens_caption.captioners.openai.config import OpenAIConfig
    from lens_caption.captioners.questions import QuestionCaptioner
    from lens_caption.stages.revise_captions.config import ReviserConfig
    from lens_caption.stages.revise_captions.stage import reviser_recipe
    from lens_core.errors import ConfigError

    if not isinstance(config, OpenAIConfig):
        raise ConfigError("only the captioner 'openai' corrects captions", file="--caption")
    options = {name: getattr(config, name) for name in config.model_fields_set}
    reviser = ReviserConfig(**options)
    return QuestionCaptioner(reviser, reviser_recipe(reviser), lambda _: {"caption": caption})


def _captioner(registry: Any, name: str, settings: list[str] | None) -> Any:
    """A captioner's config from `--captioner` and `--set`."""
    from pydantic import ValidationError

    from lens_core.config.base import first_mistake
    from lens_core.config.overrides import apply_override
    from lens_core.errors import ConfigError

    block: dict[str, object] = {"type": name}
    for text in settings or ():
        apply_override(block, text)
    try:
        config = registry.parse("captioners", block)
    except ValidationError as error:
        key, message = first_mistake(error)
        raise ConfigError(message, file=f"--captioner {name}", key=key) from error
    registry.require_libraries("captioners", name)
    return config
