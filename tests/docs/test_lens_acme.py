"""The example plugin as a stranger meets it: installed beside lens-core alone, then used in a whole run."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import yaml

from docs.markdown import ROOT

ACME = ROOT / "examples" / "lens-acme"


@pytest.mark.timeout(900)
def test_a_stranger_installs_it_and_its_tests_pass(tmp_path):
    # The libraries are those of this environment; Lens and the plugin are installed as wheels.
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    install = [venv / "bin" / "pip", "install", "-q", "--no-deps", ROOT / "packages" / "lens-core", ACME]
    subprocess.run(install, check=True, capture_output=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "borrowed.pth").write_text(f"{here}\n")

    listed = subprocess.run(
        [venv / "bin" / "lens", "plugins", "list"], check=True, capture_output=True, text=True
    ).stdout
    for name in ("acme-palette", "acme-stripes", "acme-mlp", "acme-cosine"):
        assert name in listed
    assert "lens-acme 0.1.0" in listed
    shutil.copytree(ACME / "tests", tmp_path / "tests")
    command = [venv / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, "tests"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    where = [
        venv / "bin" / "python",
        "-c",
        "import lens_acme, lens_core; print(lens_acme.__file__, lens_core.__file__)",
    ]
    printed = subprocess.run(where, check=True, capture_output=True, text=True).stdout
    assert all(str(venv) in path for path in printed.split())


def test_its_pipeline_runs(lens, tmp_path):
    sets = [
        "images.source.count=12",
        "model.budget.steps=3",
        "model.batch.samples=4",
        "model.threads=1",
        "gallery.steps=2",
    ]
    arguments = [part for text in (f"run={tmp_path / 'run'}", *sets) for part in ("--set", text)]
    done = lens("run", str(ACME / "pipeline.yaml"), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "run" / "gallery").rglob("*.png"))


def test_its_pipeline_uses_everything_it_offers(lens_registry):
    offered = {
        name
        for catalog in lens_registry.catalogs.values()
        for name in catalog
        if catalog[name].plugin.distribution == "lens-acme"
    }
    stages = yaml.safe_load((ACME / "pipeline.yaml").read_text())["stages"]
    named = {
        part if isinstance(part, str) else part.get("type")
        for stage in stages
        for part in stage.values()
        if isinstance(part, (str, dict))
    }
    assert offered <= named
