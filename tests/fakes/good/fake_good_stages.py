"""Stages of the fake plugin. `numbers` journals each number, so that a killed run does not write one twice."""

import time

import typer

from lens_core.errors import LensError, Stopped

app = typer.Typer()


@app.command()
def hello() -> None:
    """Say hello."""
    typer.echo("hello from a plugin")


def numbers(config, context):
    if config.fail_at == -2:
        raise RuntimeError("a bug")
    journal = context.state_dir / "journal"
    done = len(journal.read_text().split()) if journal.exists() else 0
    context.progress.start(config.count, "numbers")
    for number in range(done, config.count):
        if context.should_stop():
            raise Stopped(f"stopped at number {number}")
        if number == config.fail_at:
            raise LensError("told to fail")
        with journal.open("a") as file:
            file.write(f"{number}\n")
        context.progress.update(number + 1)
        time.sleep(config.pause_s)
    context.output.write_text("numbers.txt", journal.read_text())
    return {"count": config.count}


def total(config, context):
    lines = [line for artifact in context.inputs for line in artifact.read_bytes("numbers.txt").decode().split()]
    context.output.write_json("total.json", sum(map(int, lines)))
    return {"total": sum(map(int, lines)), "headline": f"total {sum(map(int, lines))}"}
