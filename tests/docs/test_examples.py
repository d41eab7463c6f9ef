"""What the pages tell a reader to type works: commands exist, pipelines are valid, Python runs."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
import yaml
from torch.distributed.run import get_args_parser as torchrun_arguments

from docs.markdown import ROOT, blocks

INSTALL = (
    'pip install -c constraints.txt -e "packages/lens-core[diffusion,images]" -e "packages/lens-caption[openai]" '
    "-e packages/lens-train -e packages/lens-serve"
)


def commands():
    """Every command line of the pages, with where it stands."""
    found = []
    for block in blocks("console"):
        for line in block.text.splitlines():
            assert line.startswith("$ "), f"{block}: {line}"
            words = shlex.split(line[2:], comments=True)
            while "=" in words[0]:
                words = words[1:]  # environment
            found.append(pytest.param(words, id=f"{block} {line[2:40]}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_command_exists(words):
    """`lens` commands are parsed with their options (and not run); make targets, files and packages are there."""
    program, *arguments = words
    if program in {"lens", ".venv/bin/lens"}:
        parse_lens(arguments)
    elif program == "make":
        assert arguments[0] in make_targets()
    elif program == "pip":
        for requirement in (arguments[i + 1] for i, word in enumerate(arguments) if word == "-e"):
            assert (ROOT / requirement.split("[")[0] / "pyproject.toml").exists()
    elif program == "pytest":
        assert (ROOT / arguments[0]).exists()
    elif program == "torchrun":
        assert torchrun_arguments().parse_args(arguments).training_script == "lens_train"
    else:
        assert program in {"chmod", "docker", "export", "kill", "mkdir", "tensorboard"}


def parse_lens(arguments):
    import typer

    from lens_core.cli.main import app
    from lens_core.registry import load_registry

    command = typer.main.get_command(app)
    offered = load_registry()["commands"]
    if arguments[0] in offered:
        command, arguments = typer.main.get_command(offered[arguments[0]].spec.load_target()), arguments[1:]
    # A group that does something by itself, such as `lens serve`, need not be given one of its commands.
    while hasattr(command, "commands") and (arguments[0] in command.commands or not command.invoke_without_command):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    options = {name: parameter for parameter in command.params for name in parameter.opts if name.startswith("-")}
    rest = iter(arguments)
    positional = []
    for word in rest:
        if not word.startswith("-"):
            positional.append(word)
        elif word != "--help":
            assert word in options, f"{word} is no option of {command.name}"
            if not options[word].is_flag:
                next(rest)
    wanted = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    assert "--help" in arguments or len(positional) >= len(wanted)
    for word in positional:
        # Files of this repository are there; the reader's own (photos, pictures yet to be drawn) are not ours to check.
        if word.startswith("examples/") and "photos/" not in word:
            assert (ROOT / word).exists()


def make_targets():
    lines = (ROOT / "Makefile").read_text().splitlines()
    return {line.split(":")[0] for line in lines if ":" in line and line.split(":")[0].isalpha()}


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_valid(block, lens_registry, tmp_path):
    """Whole pipelines are checked as `lens check` would; single stages against their own config model."""
    from lens_core.config.pipeline import load_pipeline

    data = yaml.safe_load(block.text)
    if isinstance(data, dict) and "stages" in data:
        file = tmp_path / "pipeline.yaml"
        file.write_text(block.text)
        assert load_pipeline(str(file), lens_registry).stages
    else:
        for stage in data:
            assert lens_registry.parse("stages", stage).name


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("examples/*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}"
)
def test_example_pipelines_are_valid(file, lens):
    done = lens("check", str(file))
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs_or_quotes_the_example(block):
    """A block that begins with a file's name quotes lens-acme; a signature of a hook is one; all else is run."""
    first, *rest = block.text.splitlines()
    if first.startswith("# src/") or first.startswith("# tests/"):
        assert_quotes(rest, ROOT / "examples" / "lens-acme" / first[2:])
    elif block.page.name != "hooks.md":
        run = subprocess.run([sys.executable, "-c", block.text], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_quotes_the_example(block):
    first, *rest = block.text.splitlines()
    assert_quotes(rest, ROOT / "examples" / "lens-acme" / first[2:])


def assert_quotes(lines, file):
    """Every line stands in the file, in this order."""
    there = iter(file.read_text().splitlines())
    for line in filter(str.strip, lines):
        assert line in there, f"{file.name} has no {line!r} here"


def test_install_line_is_the_same_everywhere():
    assert INSTALL in (ROOT / "README.md").read_text()
    installed = {
        word.strip('"').split("[")[0] for word in (ROOT / "Makefile").read_text().split() if "packages/" in word
    }
    assert {word.strip('"').split("[")[0] for word in INSTALL.split() if "packages/" in word} <= installed


def test_no_page_says_that_the_packages_are_on_an_index():
    names = {"lens-core", "lens-caption", "lens-train", "lens-serve", "lens-acme"}
    for block in blocks("console", "text", "bash"):
        for line in block.text.splitlines():
            words = line.split()
            if "pip" in words and "install" in words:
                assert not names & {word.strip("'\"").split("[")[0] for word in words}, f"{block}: {line}"
