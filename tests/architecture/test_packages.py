"""The four packages: versions and ranges agree, and each built wheel installs alone beside core's."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("core", "caption", "train", "serve")


def project(name):
    return tomllib.loads((ROOT / "packages" / f"lens-{name}" / "pyproject.toml").read_text())["project"]


def test_versions_and_ranges_agree():
    import lens_core

    versions = {project(name)["version"] for name in NAMES}
    assert versions == {lens_core.__version__}
    (version,) = versions
    major, minor, _ = map(int, version.split("."))
    for name in NAMES[1:]:
        (core,) = [line for line in project(name)["dependencies"] if line.startswith("lens-core")]
        assert core.endswith(f">={major}.{minor},<{major}.{minor + 1}")


def test_nothing_asks_for_torchvision():
    for name in NAMES:
        assert "torchvision" not in str(project(name))


def test_every_package_says_that_it_is_typed():
    for name in NAMES:
        assert (ROOT / "packages" / f"lens-{name}" / "src" / f"lens_{name}" / "py.typed").exists()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The four wheels, built as a release would."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in NAMES:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "-q",
                "--no-deps",
                "-w",
                str(folder),
                ROOT / "packages" / f"lens-{name}",
            ],
            check=True,
            capture_output=True,
        )
    return {name: next(folder.glob(f"lens_{name}-*.whl")) for name in NAMES}


def test_wheels_carry_code_data_and_types(wheels):
    import zipfile

    inside = {name: zipfile.ZipFile(wheel).namelist() for name, wheel in wheels.items()}
    assert all(f"lens_{name}/py.typed" in inside[name] for name in NAMES)
    assert any(path.endswith("presets/nano.yaml") for path in inside["core"])
    assert any(path.endswith(".html.j2") for path in inside["train"])
    assert not any("/test_" in path for paths in inside.values() for path in paths)


@pytest.mark.timeout(900)
def test_caption_installs_alone_beside_core_and_brings_no_torch(wheels, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    requirements = [
        f"lens-core[images] @ {wheels['core'].as_uri()}",
        f"lens-caption[openai] @ {wheels['caption'].as_uri()}",
    ]
    subprocess.run(
        [venv / "bin" / "pip", "install", "-q", "-c", ROOT / "constraints.txt", *requirements],
        check=True,
        capture_output=True,
    )
    listed = subprocess.run([venv / "bin" / "pip", "list"], check=True, capture_output=True, text=True).stdout
    assert "torch" not in listed.lower().split()
    plugins = subprocess.run(
        [venv / "bin" / "lens", "plugins", "list"], check=True, capture_output=True, text=True
    ).stdout
    assert "scene-graph" in plugins
    assert "problems" not in plugins
    assert "train" not in plugins.split("stages")[1]
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        "run: run\nstages:\n"
        "  - {name: images, type: ingest, source: {type: image-folder, url: .}}\n"
        "  - {name: dense, type: caption, source: images, captioner: {type: openai, model: m}}\n"
    )
    checked = subprocess.run([venv / "bin" / "lens", "check", str(pipeline)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    subprocess.run([venv / "bin" / "pip", "uninstall", "-q", "-y", "aiohttp"], check=True, capture_output=True)
    missing = subprocess.run([venv / "bin" / "lens", "check", str(pipeline)], capture_output=True, text=True)
    assert missing.returncode == 2
    (line,) = missing.stderr.splitlines()
    assert "needs the library 'aiohttp'" in line
    assert "pip install -c constraints.txt -e 'packages/lens-caption[openai]'" in line


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["train", "serve"])
def test_train_and_serve_install_alone_beside_core(wheels, tmp_path, name):
    # Their libraries (torch and its kin) are those of this environment: what is tested is that no sibling is needed.
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run(
        [venv / "bin" / "pip", "install", "-q", "--no-deps", wheels["core"], wheels[name]],
        check=True,
        capture_output=True,
    )
    site = next((venv / "lib").glob("python*/site-packages"))
    here = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    # Below the environment's own packages, and without the .pth files that make ours editable there.
    (site / "borrowed.pth").write_text(f"{here}\n")
    code = f"import lens_{name}.plugin, lens_core; print(lens_core.__file__)"
    done = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    assert str(venv) in done.stdout
