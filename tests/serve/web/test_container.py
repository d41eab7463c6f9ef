"""The Dockerfile, which cannot be built here: read, and held to what it promises."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

REPOSITORY = Path(__file__).parents[3]
FILE = REPOSITORY / "packages/lens-serve/Dockerfile"


def instructions():
    """Each instruction as (name, rest), in order."""
    lines = [line for line in FILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines()]


def last(name, *, before=None):
    """The last of its name, or the last before the last of another."""
    given = instructions()
    if before:
        given = given[: max(index for index, (found, _) in enumerate(given) if found == before)]
    return [rest for found, rest in given if found == name][-1]


def test_there_is_a_stage_to_build_in_and_nothing_of_it_but_the_environment_is_kept():
    stages = [rest for name, rest in instructions() if name == "FROM"]
    assert stages == ["python:3.11-slim AS build", "python:3.11-slim"]
    final = instructions()[[name for name, _ in instructions()].index("FROM", 1) :]
    assert [rest for name, rest in final if name == "COPY"] == ["--from=build /opt/lens /opt/lens"]


def test_it_does_not_run_as_root():
    user, group = last("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[len(names) - names[::-1].index("USER") :]


def test_what_it_copies_exists_and_gets_past_the_ignore_file():
    allowed = [
        line[1:] for line in FILE.with_name("Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    assert all((REPOSITORY / path).exists() for path in allowed)
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            source = rest.split()[0]
            assert any(path == source or path.startswith(f"{source}/") for path in allowed), source
    # What a wheel is made of: the project file, its readme, and the sources with the page.
    for package in ("lens-core", "lens-serve"):
        for part in ("pyproject.toml", "README.md", "src"):
            assert f"packages/{package}/{part}" in allowed
    assert not any(
        fnmatch.fnmatch(path, pattern) for path in allowed for pattern in (".git*", "runs*", "*key*", ".venv*")
    )


def test_packages_come_from_the_constraints():
    """Also those that build others, which `-c` does not reach: newer versions of pip have a variable for them."""
    names = [name for name, _ in instructions()]
    told = dict(pair.split("=", 1) for name, rest in instructions() if name == "ENV" for pair in shlex.split(rest))
    (copied,) = [rest.split() for name, rest in instructions() if name == "COPY" and "constraints.txt" in rest]
    assert copied == ["constraints.txt", "./"]
    assert told["PIP_CONSTRAINT"] == told["PIP_BUILD_CONSTRAINT"] == f"{last('WORKDIR', before='FROM')}/constraints.txt"
    assert names.index("COPY") < next(i for i, (_, rest) in enumerate(instructions()) if "pip install" in rest)


def test_only_torch_comes_from_an_index_of_its_own():
    """With two indexes at once, either may supply any package."""
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    others = [rest for rest in installs if "index-url" in rest]
    assert len(others) == 1
    words = shlex.split(others[0])
    assert words[words.index("install") + 1 :] == [
        "--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu", "torch",
    ]  # fmt: skip
    assert "EXTRA_INDEX_URL" not in FILE.read_text()


def test_the_health_check_is_python_and_asks_the_port_that_is_served():
    check = last("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["python", "-c"]
    ast.parse(command[2])
    entry = json.loads(last("ENTRYPOINT"))
    port = entry[entry.index("--port") + 1]
    assert f"http://127.0.0.1:{port}/health/live" in command[2]
    assert port in last("EXPOSE").split()


@pytest.mark.parametrize(("alive", "code"), [(True, 0), (False, 1)])
def test_the_health_check_tells_whether_the_server_is_there(live, alive, code):
    check = last("HEALTHCHECK")
    program = json.loads(check[check.index("[") :])[2]
    assert ":8000/" in program
    program = program.replace(":8000/", f":{live.port}/" if alive else ":9/")
    assert subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, timeout=60).returncode == code


@pytest.mark.parametrize("name", ["ENTRYPOINT", "CMD"])
def test_its_options_are_options_of_the_command(name):
    from lens_serve.cli import app

    told = CliRunner().invoke(app, ["--help"]).output
    for word in json.loads(last(name)):
        if word.startswith("--"):
            assert word in told
