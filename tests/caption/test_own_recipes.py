"""Recipes and profiles of one's own: they lie beside the pipeline's file, and other words in a recipe count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from caption.runs import Run
from caption.test_quote import PROFILE
from caption.vision_server import VisionServer
from lens_caption.quote import quote_pipeline
from lens_caption.testing.openai_server import FakeServer
from lens_core.config.pipeline import load_pipeline
from lens_core.registry import load_registry
from states import state_of

OWN = {"prompt": "own-1", "recipes": "mine"}


def write(folder, words, name="own-1", **more):
    (folder / "mine").mkdir(exist_ok=True)
    recipe = {"summary": "mine", "instruction": words, "layers": [{"name": "own"}], **more}
    (folder / "mine" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


def prompts(run):
    return {json.loads(row["provenance"])["prompt_sha256"] for row in run.rows()}


@pytest.mark.parametrize("executor", ["process", "leases"])
def test_other_words_begin_anew_and_the_old_ones_go_on(tmp_path, monkeypatch, executor):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, stage = Run(tmp_path, 8), {"executor": executor}

    def go(server, words, images):
        write(tmp_path, words)
        return run.run(server, OWN, stage=stage, budget={"images": images})

    with FakeServer() as server:
        assert go(server, "Describe it.", 3)[0] == 3
        assert len(server.ledger) == 3
        code, said = go(server, "Say what it is.", 2)
        assert code == 3, said
        assert len(server.ledger) == 5
        assert any("(begun anew: its settings or sources changed; " in line for line in said)
        assert go(server, "Describe it.", 99)[0] == 0
        assert len(server.ledger) == 10
        assert len(before := prompts(run)) == 1
        code, said = go(server, "Describe it.", 99)
        assert any("words: done already" in line for line in said)
        assert go(server, "Say what it is.", 99)[0] == 0
        assert len(server.ledger) == 18
        assert len(prompts(run) | before) == 2
    run.assert_captions_are_right()
    assert not state_of(tmp_path / "run", "words").exists()


def test_a_recipe_that_is_built_in_leaves_the_key_as_it_is(tmp_path):
    run = Run(tmp_path, 1)
    (tmp_path / "mine").mkdir()
    with FakeServer() as server:
        run.run(server, {"recipes": "mine"})
        key = json.loads((tmp_path / "run" / "words" / "manifest.json").read_text())["key"]
        write(tmp_path, "unused")
        _, said = run.run(server, {"recipes": "mine"})
        assert any("words: done already" in line for line in said)
        write(tmp_path, "Describe it.", "dense-1")  # in the place of the built-in one
        run.run(server, {"recipes": "mine"})
        assert json.loads((tmp_path / "run" / "words" / "manifest.json").read_text())["key"] != key


def test_a_field_that_is_null_is_no_caption(tmp_path):
    class Signless(VisionServer):
        def answer(self, body):
            return json.dumps({"caption": "A cat on a mat.", "sign": None})

    run = Run(tmp_path, 2)
    fields = {"caption": {"type": "string"}, "sign": {"type": ["string", "null"]}}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    write(tmp_path, "Say what it is.", schema=schema, layers=[{"name": name, "field": name} for name in fields])
    with Signless() as server:
        code, said = run.run(server, OWN)
    assert code == 0, said
    assert [(row["layer"], row["status"], row["text"]) for row in run.rows()] == 2 * [
        ("caption", "ok", "A cat on a mat."),
        ("sign", "empty", ""),
    ]


def test_the_folders_lie_beside_the_file_wherever_the_command_is_typed(tmp_path, monkeypatch):
    monkeypatch.delenv("LENS_CAPTION_PROFILES", raising=False)
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    run = Run(project, 2)
    write(project, "Describe it.")
    write(project, "Correct $caption.", "mend-1", inputs=["caption"])
    (project / "prices").mkdir()
    (project / "prices" / "m.yaml").write_text(PROFILE)
    with FakeServer(like={"m": "gpt-4.1"}) as server:
        own = {**OWN, "model": "m", "profiles": "prices"}
        run.write(server, own, budget={"usd": "5"})
        pipeline = yaml.safe_load((project / "pipeline.yaml").read_text())
        words = pipeline["stages"][1]
        who = {key: value for key, value in words["captioner"].items() if key not in {"type", "prompt"}}
        judge = {name: who[name] for name in ("model", "base_url", "profiles", "max_side")}
        pipeline["stages"] += [
            {
                "name": "mended",
                "type": "revise-captions",
                "source": "words",
                "captioner": {**who, "prompt": "mend-1"},
                "engine": {"budget": {"usd": "5"}},
            },
            {
                "name": "checked",
                "type": "check-captions",
                "source": "words",
                "judge": {**judge, "budget": {"usd": "5"}},
            },
        ]
        (project / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
        done = subprocess.run(
            [Path(sys.executable).with_name("lens"), "run", project / "pipeline.yaml"],
            cwd=elsewhere,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        monkeypatch.chdir(elsewhere)
        registry = load_registry()
        quotes = quote_pipeline(load_pipeline(str(project / "pipeline.yaml"), registry), registry)
        assert [quote.profile.file for quote in quotes] == [str(project / "prices" / "m.yaml")] * 2


def test_other_words_of_a_reviser_count(tmp_path):
    run = Run(tmp_path, 2)
    with FakeServer() as server:
        run.write(server)
        pipeline = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())
        captioner = {**pipeline["stages"][1]["captioner"], "prompt": "mend-1", "recipes": "mine"}
        del captioner["type"]
        mended = {"name": "mended", "type": "revise-captions", "source": "words", "captioner": captioner}
        pipeline["stages"].append(mended)
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
        for words, bought in (("Correct $caption.", 4), ("Correct $caption.", 4), ("Mend $caption.", 6)):
            write(tmp_path, words, "mend-1", inputs=["caption"])
            command = [Path(sys.executable).with_name("lens"), "run", "pipeline.yaml"]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert len(server.ledger) == bought
