"""Poison images, and every fault that the fake server knows: each is reported by sample, and none becomes a caption."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from caption.runs import Run
from lens_caption.testing.openai_server import FAULTS, BatchSettings, FakeServer, Faults, number_in_text, numbered_jpeg
from lens_caption.testing.openai_server.faults import BILLED_AND_LOST, BROKEN, LIMITING, TEXT

BECOMES = {
    **dict.fromkeys([*LIMITING, *BROKEN, *BILLED_AND_LOST, "hang"], "transport"),
    "400": "bad-image",
    "refusal": "refusal",
    "refusal-prose": "refusal",
    "content-filter": "content-filter",
    "length": "truncated",
    "empty": "empty",
    # They are late, or right in spite of it: no schema was asked for.
    **dict.fromkeys(["ok", "slow", "slow-drip", "schema-invalid", "renamed", "downgraded"], "ok"),
    # Only the gates can tell.
    **dict.fromkeys([*TEXT, "swapped"], "ok"),
}
IN_A_BATCH = {**BECOMES, "hang": "ok", "drop-after-billing": "ok", "truncated-json-after-billing": "ok"}
"""No connection breaks within a provider."""
GATES = {"loop": "loops", "reasoning-leak": "reasoning", "wrong-language": "language", "swapped": "repeated_caption"}
"""Gates that find it, where they are not called as the fault is."""


def lines(run, stage, file):
    text = (run.folder / "run" / stage / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def listed(run, stage, file="failures.jsonl"):
    return {line["name"]: line for line in lines(run, stage, file)}


def checked(run):
    """Put the captions through the gates; the rows that are left, by number."""
    pipeline = yaml.safe_load((run.folder / "pipeline.yaml").read_text())
    pipeline["stages"].append({"name": "checked", "type": "check-captions", "source": "words", "max_rejected": 1})
    (run.folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    command = [Path(sys.executable).with_name("lens"), "run", "pipeline.yaml"]
    subprocess.run(command, cwd=run.folder, check=True, stderr=subprocess.PIPE)
    return pq.read_table(run.folder / "run" / "checked" / "captions.parquet").to_pylist()


@pytest.mark.parametrize(("lane", "becomes"), [("sync", BECOMES), ("batch", IN_A_BATCH)])
def test_every_fault_is_reported_by_sample_and_none_becomes_a_caption(tmp_path, lane, becomes):
    assert becomes.keys() == set(FAULTS) - {"quota"}  # which stops the run: below
    fates = [*(fault for fault in becomes if fault != "swapped"), *["ok"] * 12, "swapped"]  # with one of those before
    faults = Faults(always=dict(enumerate(fates)))
    run = Run(tmp_path, len(fates))
    batches = BatchSettings(validate_s=0.05, process_s=0.1, finalize_s=0.05, shuffle=False)
    with FakeServer(faults=faults, words=30, slow_s=0.2, drip_s=0.2, batches=batches) as server:
        captioner = {"max_attempts": 2, "timeout_s": 2, "concurrency": 1, "max_output_tokens": 2000}
        code, said = run.run(server, captioner, lane=lane, batch={"poll_s": 0.05, "rounds": 2})
        assert code == 0, said
        assert set(server.faults.met) >= becomes.keys()
    rows, failures = run.rows(), listed(run, "words")
    assert [row["status"] for row in rows] == [becomes[fate] for fate in fates]
    for number, (fate, row) in enumerate(zip(fates, rows, strict=True)):
        name = f"{number:06d}.jpg"
        if row["status"] == "ok":
            assert (number_in_text(row["text"]) == number) == (fate != "swapped")
            assert name not in failures
        else:
            assert row["text"] == ""
            assert row["detail"]
            assert (failures[name]["status"], failures[name]["detail"]) == (row["status"], row["detail"])
    facts = {fate: json.loads(row["provenance"]) for fate, row in zip(fates, rows, strict=True)}
    assert facts["renamed"]["served_model"] == "another-model-2026-01-01"
    assert facts["downgraded"]["service_tier"] == "default"
    # What only its words give away, the gates find.
    left = checked(run)
    found = {(line["name"], line["gate"]) for line in lines(run, "checked", "checks.jsonl")}
    for number, (fate, row) in enumerate(zip(fates, left, strict=True)):
        if fate in {*TEXT, "swapped"}:
            assert (row["text"], row["status"]) == ("", "rejected"), fate
            assert (f"{number:06d}.jpg", GATES.get(fate, fate)) in found
        elif row["status"] == "ok":
            assert number_in_text(row["text"]) == number


@pytest.mark.parametrize("lane", ["sync", "batch"])
def test_an_empty_account_stops_the_run_in_one_line_and_the_next_goes_on(tmp_path, lane):
    run = Run(tmp_path, 24)
    batches = BatchSettings(validate_s=0.05, process_s=0.1, finalize_s=0.05)
    with FakeServer(faults=Faults(always={7: "quota"}), batches=batches) as server:
        code, said = run.run(server, lane=lane, batch={"poll_s": 0.05})
        assert code == 2
        assert "You exceeded your current quota" in said[-1]
        assert not any("Traceback" in line for line in said)
        server.faults.always.clear()
        code, said = run.run(server, lane=lane, batch={"poll_s": 0.05})
        assert code == 0, said
        assert server.ledger.billed_again() == 0
        assert len(server.ledger) == 24
    run.assert_captions_are_right()


def test_flex_that_is_served_as_standard_stays_within_the_budget(tmp_path):
    run = Run(tmp_path, 60)
    with FakeServer(faults=Faults(rate=1, kinds=["downgraded"])) as server:
        code, said = run.run(server, {"model": "gpt-6-luna"}, lane="flex", budget={"usd": "0.002"})
        assert code == 3, said
        assert {entry.tier for entry in server.ledger} == {"default"}
        assert Decimal("0.001") < server.ledger.total_cost() <= Decimal("0.002")


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_that_claims(width, height):
    """Some bytes that claim to be very many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def poison():
    """By name: files that are no image, or none that can be decoded."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8))
    jpeg, png, webp = saved(noise, "JPEG"), saved(noise, "PNG"), saved(noise, "WEBP")
    flipped = bytearray(png)
    for place in range(2000, 2400):
        flipped[place] ^= 0xFF
    return {
        "empty.jpg": b"",
        "text.jpg": b"not an image",
        "page.png": b"<html><body>404</body></html>",
        "archive.jpg": b"PK\x03\x04" + bytes(100),
        "half.jpg": jpeg[: len(jpeg) // 2],
        "head.jpg": jpeg[:200],
        "half.png": png[: len(png) // 2],
        "half.webp": webp[: len(webp) // 2],
        "flipped.png": bytes(flipped),
        "bomb.png": png_that_claims(60_000, 60_000),
        "hollow.png": png_that_claims(4000, 4000),
        "zero.png": png_that_claims(0, 0),
        "drawing.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n",
    }


def odd():
    """By name: images that are unusual, and fine."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    return {
        "dot.png": saved(noise.crop((0, 0, 1, 1)), "PNG"),
        "thread.png": saved(noise.resize((9000, 1)), "PNG"),
        "cmyk.jpg": saved(noise.convert("CMYK"), "JPEG"),
        "deep.png": saved(Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80)), "PNG"),
        "palette.gif": saved(noise.convert("P"), "GIF", transparency=3),
        "glass.png": saved(noise.convert("LA"), "PNG"),
        "moving.gif": saved(noise, "GIF", save_all=True, append_images=[noise.rotate(90)]),
        "profile.jpg": saved(noise, "JPEG", icc_profile=b"no profile" * 20),
        "exif.jpg": saved(noise, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40),
    }


@pytest.mark.parametrize(("lane", "filters"), [("sync", []), ("batch", []), ("sync", ["decodable"])])
def test_poison_images_are_reported_by_name_and_cost_nothing(tmp_path, lane, filters):
    """By the source that reads their headers, by the filter that decodes them, or else by the captioner."""
    run = Run(tmp_path, 0)
    bad, fine = poison(), {**odd(), **{f"{number}.jpg": numbered_jpeg(number, 96, 96) for number in range(8)}}
    for name, data in {**bad, **fine}.items():
        (run.folder / "photos" / name).write_bytes(data)
    batches = BatchSettings(validate_s=0.05, process_s=0.1, finalize_s=0.05)
    with FakeServer(batches=batches) as server:
        code, said = run.run(server, ingest={"filters": filters}, lane=lane, workers=2, batch={"poll_s": 0.05})
        assert code == 0, said
        assert len(server.ledger) == len(fine)
    dropped, failed = listed(run, "images", "drops.jsonl"), listed(run, "words")
    assert dropped.keys() | failed.keys() == bad.keys()
    assert all(line["reason"] for line in dropped.values())
    decoded = set() if filters else {"half.jpg", "half.png", "flipped.png", "hollow.png"}
    assert failed.keys() == decoded
    assert all(line["status"] == "bad-image" and line["detail"] for line in failed.values())
    assert run.stats()["captions"] == len(fine)
