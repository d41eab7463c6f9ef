"""The command line: thin commands over importable functions.

Each command imports what it needs inside itself, so that `lens --help` stays instant. Exit codes: 0 done, 1 a bug of
ours (traceback), 2 the user's input (one line), 3 stopped with its state saved.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Core's own commands, and those that installed plugins offer through `lens_commands`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *sorted(name for name in _offered() if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        offered = _offered() if own is None else {}
        if cmd_name not in offered:
            return own
        if ctx.resilient_parsing or not _is_asked(cmd_name):
            # Only `--help` looks here: the summary is enough, the plugin's module stays closed.
            return TyperCommand(cmd_name, help=offered[cmd_name].spec.summary)
        command = typer.main.get_command(offered[cmd_name].spec.load_target())
        command.name = cmd_name
        return command


app = typer.Typer(
    name="lens",
    cls=_Commands,
    help="Lens: from a folder of images to dense captions, a trained text-to-image model, and pictures.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
plugins_app = typer.Typer(help="See what is installed.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="The pipeline's YAML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a value, as in model.budget.steps=100.")
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from lens_core import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(file: FileArgument, set_: SetOption = None) -> None:
    """Run a pipeline; what is done already is skipped, what was cut off goes on."""
    from lens_core.config.pipeline import load_pipeline
    from lens_core.pipeline.runner import run_pipeline
    from lens_core.registry import load_registry

    registry = load_registry()
    artifacts = run_pipeline(load_pipeline(file, registry, set_ or ()), registry)
    for artifact in artifacts.values():
        if "headline" in artifact.stats:
            typer.echo(artifact.stats["headline"])


@app.command()
def check(file: FileArgument, set_: SetOption = None) -> None:
    """Check a pipeline without running it."""
    from lens_core.config.pipeline import load_pipeline
    from lens_core.registry import load_registry

    registry = load_registry()
    pipeline = load_pipeline(file, registry, set_ or ())
    width = max(len(stage.name) for stage in pipeline.stages)
    for stage in pipeline.stages:
        source = f" from {', '.join(stage.sources)}" if stage.sources else ""
        typer.echo(f"{stage.name:{width}}  {stage.type}{source}")
    typer.echo(f"{file}: good, {len(pipeline.stages)} stages, into {pipeline.config.run}")


@app.command()
def schema(
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File to write; standard output if absent.")
    ] = None,
) -> None:
    """Print the JSON schema of pipeline files, for completion in editors."""
    import json

    from lens_core.config.schema import pipeline_schema
    from lens_core.registry import load_registry
    from lens_core.storage import urls

    text = json.dumps(pipeline_schema(load_registry()), indent=2) + "\n"
    if output:
        urls.write_bytes(output, text.encode())
    else:
        typer.echo(text, nl=False)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    model: Annotated[str, typer.Option(help="A model folder, such as runs/quickstart/model-dense.")],
    output: Annotated[str, typer.Option("-o", "--output", help="The PNG to write.")] = "lens.png",
    size: Annotated[
        str | None,
        typer.Option(help="WIDTHxHEIGHT in pixels, or a ratio such as 16:9; default: the model's, or the image's."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampler steps; default: the model's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same picture.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 turns it off.")] = None,
    negative: Annotated[str, typer.Option(help="What to steer away from.")] = "",
    rewriter: Annotated[
        str | None, typer.Option(help="Expand the prompt first, with a rewriter such as scene-expander.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Start from this picture instead of noise.")] = None,
    mask: Annotated[str | None, typer.Option(help="Redraw only where this picture is white; with --image.")] = None,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="With --image: how much of it is forgotten; 1 is all.")
    ] = 0.6,
    lora: Annotated[list[str] | None, typer.Option(help="A LoRA to use, a .safetensors file; may be repeated.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; default: float32 for the denoiser, the rest as stored."),
    ] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="Bring encoder, denoiser and decoder to the device in turn.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Draw one picture with a trained model."""
    from lens_core.cli.generate import generate_file

    for line in generate_file(
        prompt,
        model=model,
        output=output,
        size=size,
        steps=steps,
        seed=seed,
        guidance=guidance,
        negative=negative,
        rewriter=rewriter,
        image=image,
        mask=mask,
        strength=strength,
        lora=lora or [],
        dtype=dtype,
        offload=offload,
        device=device,
    ):
        typer.echo(line)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder in the released layout.")],
    code: Annotated[str, typer.Option(help="The released inference code: a folder or a Python file; it is not run.")],
    preset: Annotated[str, typer.Option(help="Which checkpoint: lens, turbo or base.")] = "lens",
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampler steps; default: the preset's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default: the preset's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a lens.json that says something else.")] = False,
) -> None:
    """Complete a released model's folder with the lens.json that Lens loads it by."""
    from lens_core.cli.import_model import import_model

    for line in import_model(source, code=code, preset=preset, steps=steps, guidance=guidance, force=force):
        typer.echo(line)


@app.command()
def trace(
    file: Annotated[str, typer.Argument(help="A PNG made by Lens, or anything in a run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print where a picture, a model or any artefact came from."""
    import json

    from lens_core.storage.lineage import trace as trace_file

    lineage = trace_file(file)
    if as_json:
        manifests = [{"distance": distance, "url": made.url, **made.manifest} for distance, made in lineage.artifacts]
        typer.echo(json.dumps({"receipt": lineage.receipt, "artifacts": manifests, "note": lineage.note}, indent=2))
        return
    if lineage.receipt:
        typer.echo("receipt")
        for key, value in lineage.receipt.items():
            typer.echo(f"  {key}: {value}")
    for distance, artifact in lineage.artifacts:
        kind = artifact.config.get("type", "?")
        typer.echo(f"{'  ' * distance}{artifact.name}  {artifact.type} by {kind}  {artifact.hash[:12]}  {artifact.url}")
        for key in ("source", "captioner", "model", "budget"):
            value = artifact.config.get(key)
            if isinstance(value, dict):
                shown = ", ".join(f"{name} {item}" for name, item in value.items() if item not in (None, "", [], {}))
                typer.echo(f"{'  ' * distance}  {key}: {shown}")
    if lineage.note:
        typer.echo(lineage.note)


@plugins_app.command("list")
def plugins_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List every component that is installed, and every plugin that is broken."""
    from lens_core.cli.plugins import list_plugins
    from lens_core.registry import load_registry

    typer.echo(list_plugins(load_registry(), as_json=as_json))


@plugins_app.command("show")
def plugins_show(
    kind: Annotated[str, typer.Argument(help="Such as captioner or captioners.")],
    name: Annotated[str, typer.Argument(help="Such as scene-graph.")],
) -> None:
    """Show one component's options: types, defaults, descriptions."""
    from lens_core.cli.plugins import show_plugin
    from lens_core.registry import load_registry

    typer.echo(show_plugin(load_registry(), kind, name))


def main() -> None:
    """Entry point of the `lens` command: turns errors into lines and exit codes."""
    from lens_core.errors import LensError

    try:
        app()
    except LensError as error:
        for line in str(error).splitlines():
            typer.echo(f"lens: {line}", err=True)
        sys.exit(error.exit_code)


def _offered() -> dict[str, Any]:
    from lens_core.errors import PluginError
    from lens_core.registry import load_registry

    catalog = load_registry()["commands"]
    usable = {}
    for name in catalog:
        try:
            usable[name] = catalog[name]
        except PluginError:
            continue  # a contested name; `lens plugins list` tells
    return usable


def _is_asked(name: str) -> bool:
    return name in sys.argv[1:2]
