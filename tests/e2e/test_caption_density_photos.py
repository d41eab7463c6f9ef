"""The same harness on photos: captioned through a server, four arms made of the captions, measured on unseen photos."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from e2e.test_own_photos import photo

PIPELINE = str(Path(__file__).resolve().parents[2] / "examples" / "caption-density" / "photos.yaml")


def test_photos_from_folders_to_findings(lens, tmp_path):
    from lens_caption.testing.openai_server import OpenAIServer

    for folder, first in (("photos", 0), ("unseen", 20)):
        (tmp_path / folder).mkdir()
        for number in range(first, first + 10):
            photo((400 + number, 300 + number), shade=number).save(tmp_path / folder / f"{number}.jpg")
    with OpenAIServer() as server:
        sets = [f"run={tmp_path / 'run'}", f"captions.results={tmp_path / 'results'}"]
        sets += [f"images.source.url={tmp_path / 'photos'}", f"unseen.source.url={tmp_path / 'unseen'}"]
        for name in ("words", "unseen-words"):
            sets += [f"{name}.captioner.base_url={server.url}", f"{name}.captioner.model=test-model"]
        sets += ["captions.equal={steps: 2}", "captions.seeds=[0, 1]", "captions.cell.model.batch={samples: 4}"]
        sets += ["captions.cell.far.steps=2", "captions.cell.gallery.steps=2", "captions.cell.model.threads=1"]
        done = lens("run", PIPELINE, *[part for text in sets for part in ("--set", text)])
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(server.ledger) == 20
    rows = pq.read_table(tmp_path / "run" / "captions" / "rows.parquet").to_pylist()
    distances = {(row["arm"], row["seed"], row["skill"]) for row in rows if row["metric"] == "distance"}
    arms = ("alt-text", "brief", "dense", "wrong-15")
    assert distances == {(arm, seed, which) for arm in arms for seed in (0, 1) for which in ("kid", "frechet")}
    words = {row["arm"]: row["value"] for row in rows if row["metric"] == "caption_words"}
    assert words["alt-text"] < words["brief"] < words["dense"]
    report = tmp_path / "run" / "report"
    text = (report / "report.md").read_text()
    assert all(f"| {arm} | 2 |" in text for arm in arms)
    assert "What was shown" not in text
    assert json.loads((report / "tables" / "findings.json").read_text())
