"""`lens serve` and `lens verify`: thin commands."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["app", "verify_app"]

app = typer.Typer(
    help="Serve models behind the OpenAI Images API, with a page to try them.",
    add_completion=False,
    rich_markup_mode=None,
)
keys_app = typer.Typer(help="API keys; their file holds hashes only.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys_app, name="keys")
verify_app = typer.Typer(add_completion=False, rich_markup_mode=None)

KeysFile = Annotated[str, typer.Option("--keys", help="The file of keys.")]
KEYS = "lens-keys.json"


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A model folder, or NAME=FOLDER; may be repeated: the first is what requests get by default."
        ),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Serve the dense model that `make demo` trains.")] = False,
    config: Annotated[str | None, typer.Option(help="A YAML file of settings; see docs/how-to/serve.md.")] = None,
    lora: Annotated[list[str] | None, typer.Option(help="NAME=FILE of a LoRA of the first model.")] = None,
    rewriter: Annotated[str | None, typer.Option(help="Rewrite prompts first, such as with scene-expander.")] = None,
    host: Annotated[str | None, typer.Option(help="Default: 127.0.0.1; others need --keys, or --insecure.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 8000; 0 takes any that is free.")] = None,
    keys: Annotated[str | None, typer.Option(help="A file of API keys, as `lens serve keys add` writes it.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without keys.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Run the replicas on a Ray cluster.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change a setting: bounds.max_steps=30.")
    ] = None,
) -> None:
    """Serve models until stopped. `lens serve keys` manages API keys."""
    if context.invoked_subcommand is not None:
        return
    from lens_serve.options import settings_from

    options = {"host": host, "port": port, "keys": keys, "insecure": insecure or None}
    settings = settings_from(
        models=model or (),
        demo=demo,
        file=config,
        loras=lora or (),
        rewriter=rewriter,
        listen={name: value for name, value in options.items() if value is not None},
        overrides=set_ or (),
    )
    if ray:
        from lens_core.specs import load_dotted

        load_dotted("lens_serve.scale.ray_serve:serve_on_ray", asked_by="--ray", extra="lens-serve[ray]")(
            settings, say=_say
        )
        return
    from lens_serve.launch import serve_settings

    serve_settings(settings, say=_say)


def _say(line: str) -> None:
    typer.echo(f"lens: {line}", err=True)


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    file: KeysFile = KEYS,
    scope: Annotated[list[str] | None, typer.Option(help="images, metrics or admin; default: images.")] = None,
    weight: Annotated[float, typer.Option(min=0.001, help="Of its share when the server is busy.")] = 1.0,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    images_per_day: Annotated[int | None, typer.Option(min=1, help="Images in a UTC day.")] = None,
    seconds_per_day: Annotated[
        float | None, typer.Option(min=0, help="Predicted seconds of the device in a UTC day.")
    ] = None,
    expires_days: Annotated[float | None, typer.Option(min=0, help="Days until it ends by itself.")] = None,
) -> None:
    """Make a key and print it, this once; the file keeps its hash."""
    from lens_serve.admission.keys import add

    text, record = add(
        file,
        name,
        scopes=tuple(scope or ["images"]),
        weight=weight,
        max_concurrent=max_concurrent,
        images_per_day=images_per_day,
        seconds_per_day=seconds_per_day,
        expires_days=expires_days,
    )
    typer.echo(f"{file}: the key {record.id} of {record.name!r}; it is shown only here:", err=True)
    typer.echo(text)


@keys_app.command("list")
def keys_list(file: KeysFile = KEYS) -> None:
    """List keys: who, what for, until when."""
    from datetime import UTC, datetime

    from lens_serve.admission.keys import read

    for record in read(file):
        state = "good"
        if record.revoked is not None:
            state = f"revoked {record.revoked:%Y-%m-%d}"
        elif record.expires is not None:
            over = record.expires <= datetime.now(UTC)
            state = f"{'expired' if over else 'until'} {record.expires:%Y-%m-%d}"
        typer.echo(f"{record.id}  {record.name}  {','.join(record.scopes)}  weight {record.weight:g}  {state}")


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="As `lens serve keys list` shows it.")],
    file: KeysFile = KEYS,
) -> None:
    """End a key; a server that runs notices at once."""
    from lens_serve.admission.keys import revoke

    record = revoke(file, key)
    typer.echo(f"{file}: the key {record.id} of {record.name!r} is revoked")


@verify_app.command()
def verify(
    file: Annotated[str, typer.Argument(help="An image made by Lens, or the JSON of its receipt.")],
    model: Annotated[str, typer.Option(help="The model folder that it was made with.")],
    prompt: Annotated[str | None, typer.Option(help="The prompt, where the receipt holds only its hash.")] = None,
    negative: Annotated[str | None, typer.Option(help="The negative prompt, likewise.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="The file of a LoRA that it was made with; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Draw an image again from its receipt, and compare; exit code 2 where it is another."""
    from lens_serve.provenance.verify import verify_file

    for line in verify_file(file, model=model, prompt=prompt, negative=negative, lora=lora or (), device=device):
        typer.echo(line)
