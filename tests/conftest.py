"""Fixtures for every test: no network, one thread, and the fake installed plugins on request."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

from s3 import bucket, root, s3_server  # noqa: F401 (fixtures)

ROOT = Path(__file__).resolve().parents[1]
FAKES = Path(__file__).parent / "fakes"

# An example takes as long as the machine lets it: what is slow is no mistake.
hypothesis.settings.register_profile("lens", deadline=None)
hypothesis.settings.load_profile("lens")


@pytest.fixture(autouse=True)
def _no_network(no_network):
    """Tests talk to this machine only."""


@pytest.fixture
def lens(tmp_path):
    """Run the installed `lens` command in a process of its own: `lens("check", "p.yaml", fakes=["good"])`."""

    def run(*arguments: str, fakes: tuple[str, ...] = (), cwd: Path | None = None, **environment: str):
        paths = [str(FAKES / name) for name in fakes]
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join(paths),
            **environment,
        }
        return subprocess.run(
            [Path(sys.executable).with_name("lens"), *arguments],
            capture_output=True,
            text=True,
            cwd=cwd or tmp_path,
            env=env,
            timeout=240,
        )

    return run


@pytest.fixture
def with_fakes(monkeypatch):
    """Put fake installed plugins on this process's path; returns the registry that sees them."""

    def load(*names: str):
        from lens_core.registry import load_registry

        for name in names:
            monkeypatch.syspath_prepend(str(FAKES / name))
        importlib.invalidate_caches()
        return load_registry()

    return load
