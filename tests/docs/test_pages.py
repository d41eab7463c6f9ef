"""The pages hang together: links lead somewhere, what must be documented has a heading, what is generated is fresh."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from docs.markdown import ROOT, anchor, headings, links, pages

REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link} leads nowhere"
        if fragment:
            assert fragment in {anchor(heading) for heading in headings(target)}, f"{link}: no such heading"


def test_generated_reference_is_fresh():
    command = [sys.executable, ROOT / "tools" / "generate_reference.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"run tools/generate_reference.py: {done.stdout}{done.stderr}"


def test_check_notices_a_stale_page(tmp_path, monkeypatch, capsys):
    import importlib.util

    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "tools" / "generate_reference.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    monkeypatch.setattr(generator, "REFERENCE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate_reference.py"])
    assert generator.main() == 0
    monkeypatch.setattr(sys, "argv", ["generate_reference.py", "--check"])
    assert generator.main() == 0
    (tmp_path / "errors.md").write_text("old")
    capsys.readouterr()
    assert generator.main() == 1
    assert capsys.readouterr().out.strip() == "stale: docs/reference/errors.md"


def test_every_hook_has_a_heading():
    from lens_core.specs import KINDS

    assert {f"lens_{kind}" for kind in KINDS} <= set(headings(REFERENCE / "hooks.md"))


def test_every_error_has_a_heading():
    from lens_core import errors

    assert set(errors.__all__) <= set(headings(REFERENCE / "errors.md"))


def test_every_component_and_command_has_a_heading(lens_registry):
    told = {page: set(headings(REFERENCE / page)) for page in ("pipeline.md", "components.md", "cli.md")}
    home = {"stages": "pipeline.md", "commands": "cli.md"}
    for kind, catalog in lens_registry.catalogs.items():
        for name in catalog:
            if catalog[name].plugin.name in {"core", "caption", "train", "serve"}:
                heading = f"lens {name}" if kind == "commands" else name
                assert heading in told[home.get(kind, "components.md")], f"{kind} {name}"


def test_every_command_of_core_has_a_heading():
    import typer

    from lens_core.cli.main import app

    commands = typer.main.get_command(app).commands
    assert {f"lens {name}" for name in commands} <= set(headings(REFERENCE / "cli.md"))


def test_every_page_is_in_the_navigation():
    # mkdocs.yml may hold tags of Python objects; there are none in the navigation.
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def files(node):
        if isinstance(node, str):
            return {node}
        return set().union(*(files(item) for item in (node.values() if isinstance(node, dict) else node)))

    docs = ROOT / "docs"
    assert files(navigation) == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}


def test_the_readme_is_short_and_says_what_must_be_said():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    for words in (".930", ".843", "GPT-5.5", "not affiliated with Microsoft"):
        assert words in text


def test_the_notice_says_what_must_be_said():
    text = (ROOT / "NOTICE").read_text()
    for words in ("not affiliated with Microsoft", "research only", "FLUX.2 autoencoder", "captioning provider"):
        assert words in text
