"""What the ingest stage keeps of its filters: the ledger, the statistics, and measures that outlive a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from core.textures import COPIES, encoded, texture
from lens_core.config.pipeline import load_pipeline
from lens_core.contracts import Verdict
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.stages.ingest.measures import Measures
from lens_core.storage.shards import ShardReader

FILTERS = ["decodable", {"type": "clarity", "min": 1}, "luminance", "exact-duplicates", "near-duplicates"]
STEPS = ["decodable", "clarity", "luminance", "exact-duplicates", "near-duplicates"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def pipeline(tmp_path):
    def write(filters=FILTERS, run="run", **options):
        source = {"type": "image-folder", "url": "photos"}
        stage = {"name": "images", "type": "ingest", "source": source, "filters": filters} | options
        file = tmp_path / "pipeline.yaml"
        file.write_text(yaml.safe_dump({"run": str(tmp_path / run), "stages": [stage]}))
        return str(file)

    return write


@pytest.fixture
def ingest(pipeline, lens_registry):
    def run(*arguments, **options):
        loaded = load_pipeline(pipeline(*arguments, **options), lens_registry)
        return run_pipeline(loaded, lens_registry, progress=Progress(stream=io.StringIO()))["images"]

    return run


def ledger(artifact):
    return pq.read_table(io.BytesIO(artifact.read_bytes("ledger.parquet"))).to_pylist()


def fill(folder, count=6):
    """Textures, each with a near-duplicate, a dark image, and no image."""
    for number in range(count):
        (folder / f"{number:02d}.png").write_bytes(encoded(texture(number)))
        (folder / f"{number:02d} copy.jpg").write_bytes(encoded(COPIES["half"](texture(number)), "JPEG"))
    (folder / "dark.png").write_bytes(encoded(texture(99) // 40))
    (folder / "letter.png").write_text("no picture")


def test_every_look_of_every_filter_is_a_row(ingest, photos):
    fill(photos, 2)
    artifact = ingest()
    rows = ledger(artifact)
    assert list(rows[0]) == ["key", "name", "step", "score", "threshold", "reason"]
    by_name = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    assert [row["step"] for row in by_name["00.png"]] == STEPS
    assert [row["step"] for row in by_name["00 copy.jpg"]] == STEPS
    assert {row["reason"] for row in by_name["00 copy.jpg"]} == {None}
    last = by_name["00.png"][-1]
    assert last["reason"] == f"it looks like 00 copy.jpg (difference {last['score']:.3f} <= 0.25)"
    assert last["threshold"] == 0.25
    assert [(row["step"], row["reason"]) for row in by_name["letter.png"]] == [("header", "it is not an image")]
    dark = by_name["dark.png"][-1]
    assert dark["step"] in {"clarity", "luminance"}
    assert dark["score"] < dark["threshold"]
    keys = {row.name: row.key for row in ShardReader(artifact)}
    assert all(row["key"] == keys[row["name"]] for row in rows if row["name"] in keys)


def test_drops_and_ledger_tell_the_same(ingest, photos):
    fill(photos)
    artifact = ingest()
    drops = [json.loads(line) for line in artifact.read_bytes("drops.jsonl").decode().splitlines()]
    told = [{name: row[name] for name in ("name", "step", "reason")} for row in ledger(artifact) if row["reason"]]
    assert told == drops
    assert len([drop for drop in drops if drop["step"] == "near-duplicates"]) == 6


def test_statistics_are_those_of_the_ledger(ingest, photos):
    fill(photos)
    artifact = ingest()
    rows = ledger(artifact)
    assert list(artifact.stats["filters"]) == STEPS
    for step, summary in artifact.stats["filters"].items():
        mine = [row for row in rows if row["step"] == step]
        scores = [row["score"] for row in mine if row["score"] is not None]
        assert summary["seen"] == len(mine)
        assert summary["dropped"] == sum(row["reason"] is not None for row in mine)
        assert summary["seconds"] >= 0
        assert ("scores" in summary) == bool(scores)
        if scores:
            assert summary["scores"]["count"] == len(scores)
            assert summary["scores"]["mean"] == pytest.approx(np.mean(scores))
            assert summary["scores"]["p50"] == pytest.approx(np.median(scores))
            assert (summary["scores"]["min"], summary["scores"]["max"]) == (min(scores), max(scores))


def test_filters_of_one_type_are_told_apart(ingest, photos):
    fill(photos, 1)
    artifact = ingest([{"type": "entropy", "min": 0}, {"type": "entropy", "min": 1}])
    assert list(artifact.stats["filters"]) == ["entropy", "entropy-2"]


def test_files_that_cannot_be_read_are_in_it_without_a_key(ingest, photos):
    fill(photos, 1)
    (photos / "gone.png").symlink_to("nowhere.png")
    (row,) = [row for row in ledger(ingest()) if row["name"] == "gone.png"]
    assert (row["key"], row["step"]) == (None, "read")


def test_a_duplicate_of_an_image_that_a_later_filter_drops_is_judged_for_itself(ingest, photos):
    """The first of two alike is dropped after the duplicates' filter has seen it; the second must not go with it."""
    (photos / "1 large.png").write_bytes(encoded(COPIES["1.7 times"](texture(1))))
    (photos / "2 small.png").write_bytes(encoded(texture(1)))
    order = ["near-duplicates", {"type": "clarity", "min": 0}]
    clear = {row["name"]: row["score"] for row in ledger(ingest(order)) if row["step"] == "clarity"}
    assert list(clear) == ["1 large.png"]
    (photos / "1 large.png").write_bytes(encoded(texture(1) // 3))
    (photos / "2 small.png").write_bytes(encoded(texture(1) // 3 + 2))
    darker = [{"type": "near-duplicates"}, {"type": "luminance", "min": 0}]
    scores = [row["score"] for row in ledger(ingest(darker)) if row["step"] == "luminance"]
    bound = scores[0] + 1e-6
    artifact = ingest([{"type": "near-duplicates"}, {"type": "luminance", "min": bound}])
    assert [row.name for row in ShardReader(artifact)] == ["2 small.png"]


def test_other_thresholds_need_no_second_look(ingest, photos, monkeypatch):
    fill(photos)
    first = ingest(score_all=True)

    def refuse(*_):
        raise AssertionError("it was decoded again")

    monkeypatch.setattr("lens_core.images.decode", refuse)
    names = set()
    for bound in (0, 20, 60):
        cut = ingest(["decodable", {"type": "clarity", "min": bound}, {"type": "luminance", "min": bound / 1000}])
        names.add(tuple(row.name for row in ShardReader(cut)))
    assert len(names) == 3
    assert ingest(score_all=True).hash == first.hash


def test_with_score_all_the_first_reason_counts_and_every_score_is_there(ingest, photos):
    fill(photos, 2)
    filters = [{"type": "clarity", "min": 1e6}, {"type": "luminance", "max": 0.1}, {"type": "entropy", "min": 0}]
    (photos / "bright.png").write_bytes(encoded(255 - COPIES["half"](texture(3)) // 40))
    from lens_core.errors import LensError

    with pytest.raises(LensError, match=r"bright.png: it is blurred|00 copy.jpg: it is blurred"):
        ingest(filters, score_all=True)
    filters[0]["min"] = 20
    artifact = ingest(["decodable", filters[2], {"type": "luminance", "min": 0.2}, filters[0]], score_all=True)
    dark = [row for row in ledger(artifact) if row["name"] == "dark.png"]
    assert [row["step"] for row in dark] == ["decodable", "entropy", "luminance", "clarity"]
    drops = [json.loads(line) for line in artifact.read_bytes("drops.jsonl").decode().splitlines()]
    assert [drop["step"] for drop in drops if drop["name"] == "dark.png"] == ["luminance"]
    assert all(row["score"] is not None for row in dark[1:])


def test_the_folder_of_private_state_can_be_lost(ingest, photos, tmp_path):
    import shutil

    fill(photos, 2)
    first = ingest()
    for damage in (lambda file: file.write_bytes(b"no database" * 1000), lambda file: shutil.rmtree(file.parent)):
        damage(tmp_path / "run" / ".state" / "images.measures")
        ingest(["decodable"])
        assert ingest().hash == first.hash


def test_measures_come_back_exactly(tmp_path):
    key = "ab" * 32
    values = {"float": 0.1 + 0.2, "text": "ü", "empty": "", "bytes": bytes(range(256))}
    measures = Measures(tmp_path / "m")
    assert measures.of(key) == {}
    measures.put(key, values)
    measures.close()
    measures = Measures(tmp_path / "m")
    assert measures.of(key) == values
    assert measures.of("cd" * 32) == {}
    measures.close()


def kill_and_resume(pipeline, tmp_path, moments):
    """SIGKILL at these moments (seconds after the first measure is on disk), then a run to the end."""
    file = pipeline(run="killed")
    command = [str(Path(sys.executable).with_name("lens")), "run", file]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    measures = tmp_path / "killed" / ".state" / "images.measures-wal"
    for moment in moments:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and not measures.exists():
                time.sleep(0.02)
            time.sleep(moment)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (tmp_path / "killed" / "images" / "manifest.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_killed_ingest_ends_as_if_nothing_had_happened(ingest, pipeline, photos, tmp_path):
    fill(photos, 45)
    whole = ingest()
    kill_and_resume(pipeline, tmp_path, [0.05, 0.2])
    from lens_core.storage.artifacts import load_artifact

    resumed = load_artifact(str(tmp_path / "killed" / "images"))
    assert resumed.hash == whole.hash
    assert ledger(resumed) == ledger(whole)


def test_a_verdict_is_plain():
    assert Verdict() == Verdict(reason=None, score=None, threshold=None)
