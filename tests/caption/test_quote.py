"""The quote: headers only, right to the ledger of a server after a pilot, and honest about what it does not know."""

from __future__ import annotations

import datetime
import io
import json
import random
from collections import Counter
from decimal import Decimal

import fsspec
import numpy as np
import pytest
from PIL import Image

from lens_caption.captioners.openai.config import OpenAIConfig
from lens_caption.captioners.openai.picture import sent_size
from lens_caption.engine.request import PROFILE_LANES
from lens_caption.profiles import RetiredModelError, UnknownPriceError, load_profile
from lens_caption.profiles.calibrate import Observation
from lens_caption.quote import quote_pipeline
from lens_caption.quote.estimate import Pilot, estimate
from lens_caption.quote.survey import Survey
from lens_caption.tables import money
from lens_caption.testing.openai_server import BatchSettings, FakeServer
from lens_core.config.pipeline import load_pipeline
from lens_core.errors import ConfigError, LensError
from lens_core.images import decode, to_jpeg
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.registry import load_registry
from s3 import Between, in_bucket

NOV = datetime.date(2026, 11, 25)
PROFILE = """
model: m
checked: 2026-11-25
sources: [the ledger of the server]
image_rule: {rule: patches, side: 32}
prices:
  standard: {input_per_million: 2, output_per_million: 8}
  flex: {input_per_million: 1, output_per_million: 4}
"""


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.fixture(autouse=True)
def _no_profiles_of_mine(monkeypatch):
    monkeypatch.delenv("LENS_CAPTION_PROFILES", raising=False)


def photos(folder, sizes, seed=0):
    """One JPEG per size, no two alike."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for index, (width, height) in enumerate(sizes):
        small = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(folder / f"{index:04d}.jpg", quality=80)


def distribution(name, count=72):
    """Three ways in which sizes are spread: one size, a few cameras, and anything from tiny to wide."""
    generator = random.Random(7)
    if name == "one":
        return [(256, 192)] * count
    if name == "cameras":
        return generator.choices([(320, 240), (240, 320), (256, 256), (400, 225)], weights=[5, 3, 1, 2], k=count)
    return [(round(40 * 10 ** generator.random()), round(40 * 10 ** generator.random())) for _ in range(count)]


def pipeline_of(tmp_path, registry, *, source="photos", captioner="", filters="[]", **options):
    settings = {"type": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "max_side": 256, **options}
    (tmp_path / "mine").mkdir(exist_ok=True)
    if not (tmp_path / "mine" / "m.yaml").exists():
        (tmp_path / "mine" / "m.yaml").write_text(PROFILE)
    settings.setdefault("profiles", str(tmp_path / "mine"))
    (tmp_path / "p.yaml").write_text(
        f"run: {tmp_path}/run\nstages:\n"
        f"  - {{name: images, type: ingest, source: {{type: image-folder, url: {source}}}, filters: {filters}}}\n"
        f"  - {{name: dense, type: caption, source: images, captioner: {json.dumps(settings)}}}\n"
    )
    return load_pipeline(str(tmp_path / "p.yaml"), registry)


def large_photos(folder, count, seed=0):
    """JPEGs of noise, each of more than a hundred kilobytes; the last one is there twice."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        pixels = generator.integers(0, 255, (400, 500 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04d}.jpg", quality=90)
    (folder / "again.jpg").write_bytes((folder / f"{count - 1:04d}.jpg").read_bytes())


def test_of_large_files_only_the_beginning_is_fetched(tmp_path, registry, s3_server, monkeypatch):
    large_photos(tmp_path / "photos", 12)
    small = to_jpeg(np.zeros((40, 60, 3), np.uint8), max_side=60, quality=80)
    (tmp_path / "photos" / "small.jpg").write_bytes(small)
    (tmp_path / "photos" / "small-again.jpg").write_bytes(small)
    (tmp_path / "photos" / "broken.jpg").write_bytes(bytes(150_000))
    profile = Image.new("RGB", (64, 48))
    profile.save(tmp_path / "photos" / "profile.jpg", icc_profile=bytes(300_000))
    with Between(s3_server["AWS_ENDPOINT_URL"]) as between:
        for url in in_bucket({**s3_server, **between.environment}, monkeypatch):
            files = sorted((tmp_path / "photos").iterdir())
            filesystem = fsspec.filesystem("s3")
            for file in files:
                filesystem.pipe_file(f"{url.removeprefix('s3://')}/{file.name}", file.read_bytes())
            between.given.clear()
            pipeline = pipeline_of(tmp_path, registry, source=url)
            (quote,) = quote_pipeline(pipeline, registry, today=NOV)
    assert quote.images == 12 + 1 + 1 + 1  # of large files the beginning does not tell that one is there twice
    assert quote.dropped == {"duplicate": 1, "header": 1}
    assert any("needs more than headers: duplicates" in line for line in quote.warnings)
    fetched = Counter()
    for method, path, size in between.given:
        if method == "GET" and ".jpg" in path:
            fetched[path.rsplit("/", 1)[-1].partition("?")[0]] += size
    assert fetched.keys() == {file.name for file in files}
    for file in files:
        whole = file.stat().st_size
        if file.name in {"broken.jpg", "profile.jpg"}:
            assert fetched[file.name] == whole + (64 << 10)  # the beginning did not do
        else:
            assert fetched[file.name] == min(whole, 64 << 10)
    here = pipeline_of(tmp_path, registry)
    (same,) = quote_pipeline(here, registry, today=NOV)
    assert (same.images, same.dropped, same.lanes) == (quote.images, quote.dropped, quote.lanes)


def test_exact_duplicates_among_large_files_are_told_to_be_unchecked(tmp_path, registry):
    large_photos(tmp_path / "photos", 3)
    pipeline = pipeline_of(tmp_path, registry, filters="[exact-duplicates, {type: min-area, pixels: 1000}]")
    (quote,) = quote_pipeline(pipeline, registry, today=NOV)
    assert quote.images == 4
    assert any("needs more than headers: exact-duplicates, duplicates" in line for line in quote.warnings)


def quote_of(sizes, model="gpt-4.1", *, pilot=None, today=NOV, **options):
    limits = {name: options.pop(name) for name in ("rpm", "tpm") if name in options}
    return estimate(
        stage="dense",
        survey=Survey(sizes=Counter(sizes)),
        config=OpenAIConfig(model=model, **options),
        profile=load_profile(model, base_url=None, folder=None),
        pilot=pilot,
        today=today,
        **limits,
    )


@pytest.mark.parametrize("spread", ["one", "cameras", "anything"])
def test_after_a_pilot_the_quote_is_the_ledger(tmp_path, registry, spread):
    photos(tmp_path / "photos", distribution(spread))
    with FakeServer() as server:
        pipeline = pipeline_of(tmp_path, registry, base_url=server.url)
        (quote,) = quote_pipeline(pipeline, registry, pilot=16, today=NOV)
        piloted = list(server.ledger)
        assert len(piloted) == 16
        run_pipeline(pipeline, registry, progress=Progress(stream=io.StringIO()))
        bought = server.ledger[16:]
    assert quote.images == len(bought) == 72
    billed_input = sum(entry.input_tokens for entry in bought)
    billed_output = sum(entry.output_tokens for entry in bought)
    assert quote.input_tokens.expected == pytest.approx(billed_input, rel=0.01)
    for lane, price in {"standard": (2, 8), "flex": (1, 4)}.items():
        dollars = (billed_input * price[0] + billed_output * price[1]) / 1e6
        offer = quote.lanes[lane]
        assert float(offer.dollars) == pytest.approx(dollars, rel=0.05)
        assert offer.low <= offer.dollars <= offer.high <= offer.at_most
    assert quote.lanes["batch"] is None
    spent = sum(2 * entry.input_tokens + 8 * entry.output_tokens for entry in piloted)
    assert quote.pilot.dollars == Decimal(spent) / 10**6
    assert not [line for line in quote.warnings if "image rule" in line]


@pytest.mark.parametrize(
    ("model", "spread", "lane"),
    [
        ("gpt-4.1", "cameras", "sync"),
        ("gpt-4.1-mini", "one", "batch"),
        ("gpt-6-luna", "anything", "flex"),
        ("gpt-6-luna", "anything", "batch"),
    ],
)
def test_built_in_profiles_against_the_price_list_of_the_server(tmp_path, registry, model, spread, lane):
    photos(tmp_path / "photos", [(3 * width, 3 * height) for width, height in distribution(spread)])
    with FakeServer(words=60, batches=BatchSettings(validate_s=0.05, process_s=0.2, finalize_s=0.05)) as server:
        pipeline_of(tmp_path, registry, base_url=server.url, model=model, max_side=1024)
        settings = [f"dense.engine.lane={lane}", "dense.engine.batch={poll_s: 0.05}"]
        pipeline = load_pipeline(str(tmp_path / "p.yaml"), registry, settings)
        (quote,) = quote_pipeline(pipeline, registry, pilot=24, today=NOV)
        piloted = server.ledger.total_cost()
        before = server.ledger.input_tokens()
        run_pipeline(pipeline, registry, progress=Progress(stream=io.StringIO()))
        dollars = server.ledger.total_cost() - piloted
        billed = server.ledger.input_tokens() - before
        tier = server.ledger[-1].tier
    assert quote.pilot.dollars == piloted
    assert quote.input_tokens.expected == pytest.approx(billed, rel=0.01)
    assert tier == {"sync": "default"}.get(lane, lane)
    assert float(quote.lanes[PROFILE_LANES[lane]].dollars) == pytest.approx(float(dollars), rel=0.05)
    assert quote.calibration.off < 0.01


def test_a_wrong_image_rule_is_reported_and_corrected(tmp_path, registry):
    photos(tmp_path / "photos", distribution("anything"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "m.yaml").write_text(PROFILE.replace("side: 32", "side: 32, factor: 1.5"))
    with FakeServer() as server:
        pipeline = pipeline_of(tmp_path, registry, base_url=server.url)
        (quote,) = quote_pipeline(pipeline, registry, pilot=16, today=NOV)
        run_pipeline(pipeline, registry, progress=Progress(stream=io.StringIO()))
        billed = sum(entry.input_tokens for entry in server.ledger[16:])
    assert quote.calibration.factor == pytest.approx(1 / 1.5, rel=0.02)
    assert any("image rule of m is off by 33." in line and "corrected" in line for line in quote.warnings)
    assert quote.input_tokens.expected == pytest.approx(billed, rel=0.01)


def test_without_a_pilot_nothing_is_sent_and_nothing_decoded(tmp_path, registry):
    photos(tmp_path / "photos", [(200, 100)] * 3)
    whole = (tmp_path / "photos" / "0000.jpg").read_bytes()
    # Only its header is there: who decodes it fails, who reads the header does not.
    (tmp_path / "photos" / "0003.jpg").write_bytes(whole[:-200])
    (tmp_path / "photos" / "0004.jpg").write_bytes(whole)
    (tmp_path / "photos" / "0005.jpg").write_bytes(b"no image")
    with FakeServer() as server:
        pipeline = pipeline_of(tmp_path, registry, base_url=server.url, filters="[min-area, decodable]")
        with pytest.raises(LensError, match=r"dense: there is no image to caption \(min-area 5, header 1\)"):
            quote_pipeline(pipeline, registry, today=NOV)
        pipeline = pipeline_of(
            tmp_path, registry, base_url=server.url, filters="[{type: min-area, pixels: 100}, decodable]"
        )
        (quote,) = quote_pipeline(pipeline, registry, today=NOV)
        assert server.requests == 0
    assert quote.images == 4
    assert quote.dropped == {"duplicate": 1, "header": 1}
    assert any("needs more than headers: decodable" in line for line in quote.warnings)
    assert quote.pilot is None


def test_filters_with_a_model_are_not_even_loaded(tmp_path, registry):
    photos(tmp_path / "photos", [(200, 100)] * 3)
    filters = "[{type: nsfw, model: /no/such/model}, clarity, near-duplicates, {type: exact-duplicates, of: bytes}]"
    (quote,) = quote_pipeline(pipeline_of(tmp_path, registry, filters=filters), registry, today=NOV)
    assert quote.images == 3
    (line,) = (line for line in quote.warnings if "more than headers" in line)
    assert "nsfw, clarity, near-duplicates;" in line


def test_a_sample_stands_for_all(tmp_path, registry):
    photos(tmp_path / "photos", distribution("cameras"))
    pipeline = pipeline_of(tmp_path, registry)
    (whole,) = quote_pipeline(pipeline, registry, today=NOV)
    (part,) = quote_pipeline(pipeline, registry, sample=24, today=NOV)
    assert part.images == whole.images == 72
    assert part.input_tokens.low <= whole.input_tokens.expected <= part.input_tokens.high
    assert any("only 24 of 72 headers were read" in line for line in part.warnings)


@pytest.mark.parametrize("max_side", [48, 255, 256, 768])
def test_sent_size_is_what_the_jpeg_has(max_side):
    generator = random.Random(max_side)
    for _ in range(60):
        width, height = generator.randint(1, 900), generator.randint(1, 900)
        jpeg = to_jpeg(np.zeros((height, width, 3), np.uint8), max_side=max_side, quality=30)
        assert sent_size(width, height, max_side) == decode(jpeg).shape[1::-1]


def test_published_example_of_batch_files():
    # A 768 px JPEG at quality 85 is about 158 kB of base64: a million of them are about 790 files of 200 MB.
    quote = quote_of({(1024, 1024): 10**6}, "gpt-6-luna", max_side=768)
    assert quote.batch_files == pytest.approx(790, rel=0.03)
    assert quote.batch_bytes == pytest.approx(158e9, rel=0.03)
    # Small ones are limited by their number.
    assert quote_of({(32, 32): 10**6}, "gpt-6-luna").batch_files == 20


def test_dollars_of_a_million_images():
    quote = quote_of({(1024, 1024): 10**6}, "gpt-6-luna", max_side=1024, instruction="word " * 193)
    assert quote.input_tokens.expected == 10**6 * (250 + 1229)
    assert quote.output_tokens.expected == 150 * 10**6
    assert round(quote.lanes["standard"].dollars) == 223
    assert quote.lanes["batch"].dollars == Decimal("111.45")
    assert quote.lanes["standard"].at_most == Decimal(10**6) * 700 * Decimal("0.5") / 10**6 + Decimal("152.9")


def test_limits_give_the_time_and_the_end_of_a_model(monkeypatch):
    quote = quote_of(
        {(1024, 1024): 10**6}, max_side=1024, instruction="word " * 193, max_output_tokens=300, tpm=800_000
    )
    assert quote.images_per_minute == pytest.approx(608.4, abs=0.1)
    assert quote.lanes["standard"].hours == pytest.approx(10**6 / 608.37 / 60, rel=0.001)
    assert quote.lanes["batch"].hours == 24
    slow = quote_of({(1024, 1024): 10**6}, max_side=1024, max_output_tokens=300, tpm=10_000)
    assert any("before this run would end" in line and "gpt-6-luna" in line for line in slow.warnings)
    assert quote_of({(64, 64): 1}).lanes["standard"].hours is None
    assert quote_of({(64, 64): 10**12}, rpm=1).lanes["standard"].hours > 10**10


def pilot_of(lengths, *, seconds=1.0):
    answers = tuple(Observation(width=64, height=64, input_tokens=104, output_tokens=length) for length in lengths)
    return Pilot(
        answers=answers,
        statuses=Counter(ok=len(answers)),
        jpeg_bytes_per_pixel=0.2,
        seconds=seconds,
        dollars=Decimal(0),
    )


@pytest.mark.parametrize("count", [5, 30])
def test_the_range_of_a_pilot_holds_the_truth_nineteen_times_out_of_twenty(count):
    generator = random.Random(count)
    held = 0
    for _ in range(400):
        everything = [max(1, round(generator.gauss(140, 35))) for _ in range(300)]
        quote = quote_of({(64, 64): 300}, pilot=pilot_of(generator.sample(everything, count)))
        held += quote.output_tokens.low <= sum(everything) <= quote.output_tokens.high
    assert 0.92 <= held / 400 <= 0.98


def test_a_pilot_of_everything_leaves_nothing_open():
    quote = quote_of({(64, 64): 3}, pilot=pilot_of([100, 140, 180]))
    assert quote.output_tokens.low == quote.output_tokens.high == 420
    assert quote.lanes["standard"].low == quote.lanes["standard"].high == Decimal(3 * 104 * 2 + 420 * 8) / 10**6


def test_a_pilot_that_cannot_check_the_rule_says_so():
    mixed = {(64, 64): 50, (640, 640): 50}
    assert any("try a larger one" in line for line in quote_of(mixed, "gpt-6-luna", pilot=pilot_of([90] * 9)).warnings)
    alike = quote_of({(64, 64): 50}, "gpt-6-luna", pilot=pilot_of([90] * 9))
    assert not any("try a larger one" in line for line in alike.warnings)
    # Fewer tokens than the rule alone would have: nothing becomes negative.
    assert quote_of(mixed, "gpt-4o-mini", pilot=pilot_of([90] * 9)).lanes["standard"].low >= 0


def test_what_a_pilot_says_of_the_time():
    def rate(seconds, **limits):
        return quote_of({(64, 64): 9000}, pilot=pilot_of([100] * 20, seconds=seconds), **limits).images_per_minute

    assert rate(10) == 120
    assert rate(10, rpm=60) == 60
    assert rate(10, rpm=5000) == 120  # the server, or this client, is slower than the limit
    assert rate(10, rpm=5000, concurrency=64) == 5000  # twenty requests say nothing about sixty-four in flight


def test_resize_that_lowers_the_bill():
    quote = quote_of({(768, 1025): 1000}, max_side=2048)
    step = quote.resizes[0]
    # One row of pixels less saves a third of the picture's tokens.
    assert step.max_side == 1024
    assert step.pixels > 0.99
    assert quote.input_tokens.expected - step.input_tokens == 1000 * (1105 - 765)
    assert quote.lanes["standard"].dollars - step.dollars["standard"] == Decimal(1000 * 340 * 2) / 10**6
    sides = [item.max_side for item in quote.resizes]
    assert sides == sorted(sides, reverse=True)
    # Tiles are counted at a short side of 768 at most: larger pictures cost the same, and may as well be sent.
    larger = quote_of({(2000, 1500): 1000}, max_side=1024).resizes[0]
    assert larger.max_side == 2048
    assert larger.pixels > 3
    assert larger.input_tokens == quote_of({(2000, 1500): 1000}, max_side=1024).input_tokens.expected


def test_resizes_of_a_patch_rule_cost_what_they_say():
    quote = quote_of({(1600, 1200): 700, (900, 1200): 300}, "gpt-6-luna", max_side=1024)
    assert 0 < len(quote.resizes) <= 5
    for item in quote.resizes:
        again = quote_of({(1600, 1200): 700, (900, 1200): 300}, "gpt-6-luna", max_side=item.max_side)
        assert again.input_tokens.expected == item.input_tokens
        assert again.lanes["flex"].dollars == item.dollars["flex"]


def test_unknown_and_retired(tmp_path, registry):
    photos(tmp_path / "photos", [(64, 64)] * 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "m.yaml").write_text(PROFILE.split("prices:")[0])
    pipeline = pipeline_of(tmp_path, registry)
    (quote,) = quote_pipeline(pipeline, registry, today=NOV)
    assert set(quote.lanes.values()) == {None}
    assert any("no price of m is known" in line for line in quote.warnings)
    with pytest.raises(UnknownPriceError):
        quote_pipeline(pipeline, registry, pilot=1, today=NOV)
    old = pipeline_of(tmp_path, registry, model="gpt-4.1-nano")
    with pytest.raises(RetiredModelError, match="gpt-6-luna"):
        quote_pipeline(old, registry, today=NOV)


def test_a_pilot_of_refusals_says_so(tmp_path, registry):
    photos(tmp_path / "photos", [(64, 64)] * 4)
    with FakeServer(faults=["refusal", "refusal"]) as server:
        pipeline = pipeline_of(tmp_path, registry, base_url=server.url, concurrency=1)
        (quote,) = quote_pipeline(pipeline, registry, pilot=4, today=NOV)
    assert quote.pilot.statuses == Counter(ok=2, refusal=2)
    assert any("refusal 2" in line for line in quote.warnings)


def test_what_the_stage_says_of_lane_limits_and_budget(tmp_path, registry):
    photos(tmp_path / "photos", [(64, 64)] * 40)
    pipeline_of(tmp_path, registry)

    def quoted(**engine):
        settings = [f"dense.engine.{name}={value}" for name, value in engine.items()]
        return quote_pipeline(load_pipeline(str(tmp_path / "p.yaml"), registry, settings), registry, today=NOV)[0]

    plain = quoted(rpm=60, lane="flex")
    assert plain.limits["rpm"] == 60
    assert not any("budget" in line for line in plain.warnings)
    half = quoted(lane="flex", budget=f"{{usd: {plain.lanes['flex'].dollars / 2}}}")
    assert any("covers about 20 of 40 images in the lane flex" in line for line in half.warnings)
    assert not any("budget" in line for line in quoted(lane="flex", budget="{usd: 9}").warnings)
    assert any("the stage's lane (batch) has no known price" in line for line in quoted(lane="batch").warnings)


def test_reasoning_is_named(tmp_path):
    assert not any("reasoning" in line for line in quote_of({(64, 64): 9}, "gpt-6-luna").warnings)
    loud = quote_of({(64, 64): 9}, "gpt-6-luna", reasoning_effort="medium")
    assert any("reasoning (medium) is billed as output" in line for line in loud.warnings)


def test_stages_are_found_by_name(tmp_path, registry):
    photos(tmp_path / "photos", [(64, 64)])
    pipeline = pipeline_of(tmp_path, registry)
    with pytest.raises(ConfigError, match=r"no caption stage 'brief' \(there is: dense\)"):
        quote_pipeline(pipeline, registry, stage="brief")
    (tmp_path / "p.yaml").write_text(
        f"run: {tmp_path}/run\nstages:\n"
        "  - {name: images, type: ingest, source: {type: scenes, count: 3}}\n"
        "  - {name: dense, type: caption, source: images, captioner: {type: scene-graph}}\n"
    )
    with pytest.raises(ConfigError, match=r"no caption stage asks a model .*\(caption stages: dense\)"):
        quote_pipeline(load_pipeline(str(tmp_path / "p.yaml"), registry), registry)


def test_quote_command(lens, tmp_path, registry):
    photos(tmp_path / "photos", [(64, 64)] * 4)
    pipeline_of(tmp_path, registry, model="gpt-6-luna", base_url="https://api.openai.com/v1")
    table = lens("caption", "quote", "p.yaml", "--rpm", "60")
    assert table.returncode == 0, table.stderr
    for word in ("gpt-6-luna, by a profile of 2026-", "standard", "flex", "batch", "$0.00", "1 min", "up to 24 h"):
        assert word in table.stdout
    (plain,) = json.loads(lens("caption", "quote", "p.yaml", "--rpm", "60", "--json").stdout)
    assert plain["images"] == 4
    assert plain["lanes"]["flex"]["dollars"] == pytest.approx(plain["lanes"]["standard"]["dollars"] / 2, abs=1e-6)
    assert plain["limits"] == {"rpm": 60, "tpm": None}
    gone = lens("caption", "quote", "p.yaml", "--set", "dense.captioner.model=gpt-4.1-nano")
    assert gone.returncode == 2
    assert "shut down on 2026-10-23; its successor is gpt-6-luna" in gone.stderr


@pytest.mark.parametrize(
    ("dollars", "text"),
    [(0, "$0"), (0.00042, "$0.0004"), (0.5, "$0.50"), (223.4, "$223.40"), (2_229_000, "$2,229,000")],
)
def test_money(dollars, text):
    assert money(dollars) == text
