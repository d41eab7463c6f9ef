"""Model profiles: image-token rules against every published example, prices to the last digit, and the user's own."""

from __future__ import annotations

import datetime
import json
import random
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_caption.profiles import (
    Profile,
    RetiredModelError,
    UnknownModelError,
    UnknownPriceError,
    Usage,
    estimate_text_tokens,
    list_profiles,
    load_profile,
    patch_tokens,
    tile_tokens,
)
from lens_caption.profiles.calibrate import Observation, calibrate, fitting_rules
from lens_caption.quote.estimate import images_per_minute
from lens_caption.testing.openai_server import tokens
from lens_core.errors import ConfigError

OPENAI = "https://api.openai.com/v1"
HERE = "http://127.0.0.1:8000/v1"
NOV = datetime.date(2026, 11, 23)


@pytest.fixture(autouse=True)
def _no_profiles_of_mine(monkeypatch):
    monkeypatch.delenv("LENS_CAPTION_PROFILES", raising=False)


def load(model, base_url=OPENAI, folder=None):
    return load_profile(model, base_url=base_url, folder=folder)


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


PUBLISHED = [
    # model, then tokens of 512x512, 1024x1024, 768x1024, 768x1025, 2048x1536
    ("gpt-4.1", (255, 765, 765, 1105, 765)),
    ("gpt-4o", (255, 765, 765, 1105, 765)),
    ("gpt-4.1-mini", (415, 1659, None, None, 2489)),
    ("gpt-4.1-nano", (630, 2520, None, None, 3779)),
    ("gpt-5.1", (210, 630, 630, 910, 630)),
    ("gpt-5.2", (308, 1229, 922, 951, 1844)),
    ("gpt-6-luna", (308, 1229, 922, 951, 1844)),
    ("gpt-6.1-sol", (308, 1229, 922, 951, 1844)),
]
SIZES = [(512, 512), (1024, 1024), (768, 1024), (768, 1025), (2048, 1536)]


@pytest.mark.parametrize(("model", "counts"), PUBLISHED)
def test_published_image_tokens(model, counts):
    profile = load(model)
    for (width, height), count in zip(SIZES, counts, strict=True):
        if count is not None:
            assert profile.image_tokens(width, height) == count
            assert profile.image_tokens(height, width, "high") == count


def test_more_published_image_tokens():
    four = load("gpt-4.1")
    # Billed to users: 773 tokens of which 8 are text; and 765 for a picture whose tiles would be 8,245 unscaled.
    assert four.image_tokens(1800, 2400) == 765
    assert four.image_tokens(4000, 3000) == 765
    assert tile_tokens(4000, 3000, base=85, per_tile=170, fit=10**6, short_side=10**6) == 85 + 170 * 48 == 8245
    assert four.image_tokens(4000, 3000, "low") == 85
    luna = load("gpt-6-luna")
    assert luna.image_tokens(2048, 1536, "original") == 3687
    assert luna.image_tokens(9000, 9000, "original") == 12_000
    assert luna.image_tokens(9000, 9000) == 1844


@settings(deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000))
def test_tiles_agree_with_the_rule_told_in_floats(width, height):
    scale = min(1.0, 2048 / max(width, height))
    scaled = width * scale, height * scale
    scale = min(1.0, 768 / min(scaled))
    tiles = [side * scale / 512 for side in scaled]
    # Where a side ends within a pixel of a tile's edge, rounding decides, and floats do not say how.
    if all(abs(count - round(count)) > 2 / 512 or count < 1 for count in tiles):
        expected = 85 + 170 * -(-tiles[0] // 1) * -(-tiles[1] // 1)
        assert tile_tokens(width, height, base=85, per_tile=170) == expected


@pytest.mark.parametrize("model", [name for name, _ in PUBLISHED])
def test_the_fake_server_counts_the_same_by_rules_of_its_own(model):
    profile, facts = load(model), tokens.facts_of(model, {})
    generator = random.Random(model)
    for _ in range(2000):
        width, height = generator.randint(1, 5000), generator.randint(1, 5000)
        assert profile.image_tokens(width, height) == tokens.image_tokens(facts, width, height), (width, height)
    assert profile.price().input_per_million == facts.price[0]
    assert profile.price().output_per_million == facts.price[1]


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([None, 100, 1536]))
def test_patches_agree_with_counting_them(width, height, cap):
    counted = len(range(0, width, 32)) * len(range(0, height, 32))
    counted = counted if cap is None else min(counted, cap)
    assert patch_tokens(width, height, side=32, cap=cap) == counted
    # In whole numbers: 1.2 is 6/5, and the product is rounded up.
    assert patch_tokens(width, height, side=32, factor=Decimal("1.2"), cap=cap) == (6 * counted + 4) // 5


@pytest.mark.parametrize(
    ("model", "lane", "side", "dollars"),
    [
        # A million images, 250 tokens of prompt and 150 of answer (rounded to dollars where published).
        ("gpt-4.1", "standard", 512, 2_210),
        ("gpt-4.1", "batch", 512, 1_105),
        ("gpt-4.1", "standard", 1024, 3_230),
        ("gpt-4.1", "batch", 1024, 1_615),
        ("gpt-6.1-sol", "standard", 512, 2_616),
        ("gpt-6.1-sol", "flex", 512, 1_308),
        ("gpt-6.1-sol", "standard", 1024, 4_458),
        ("gpt-6.1-sol", "batch", 1024, 2_229),
        ("gpt-6-luna", "standard", 512, 131),
        ("gpt-6-luna", "batch", 512, 65),
        ("gpt-6-luna", "standard", 1024, 223),
        ("gpt-6-luna", "flex", 1024, 111),
    ],
)
def test_published_prices_of_a_million_images(model, lane, side, dollars):
    profile = load(model)
    usage = Usage(input_tokens=10**6 * (250 + profile.image_tokens(side, side)), output_tokens=150 * 10**6)
    cost = profile.cost(usage, lane)
    assert isinstance(cost, Decimal)
    assert abs(cost - dollars) < 1


def test_money_is_exact():
    luna = load("gpt-6-luna")
    one = luna.cost(Usage(input_tokens=1, output_tokens=0), "flex")
    assert one == Decimal("0.00000005")
    assert one * 3 == luna.cost(Usage(input_tokens=3, output_tokens=0), "flex")
    cached = luna.cost(Usage(input_tokens=1000, output_tokens=0, cached_input_tokens=400))
    assert cached == (600 * Decimal("0.10") + 400 * Decimal("0.01")) / 10**6
    # Without a price for it, cached input costs what input costs.
    assert luna.cost(Usage(input_tokens=1000, output_tokens=0, cached_input_tokens=400), "batch") == Decimal("0.00005")


@pytest.mark.parametrize(
    ("rpm", "tpm", "images"),
    [
        (None, 30_000, 23),
        (None, 800_000, 608),
        (None, 2_000_000, 1_521),
        (10_000, 30_000_000, 10_000),
        (None, None, None),
        (60, None, 60),
    ],
)
def test_published_limits(rpm, tpm, images):
    rate = images_per_minute(rpm=rpm, tpm=tpm, input_tokens=765 + 250, reserved_output=300)
    assert rate is None if images is None else round(rate) == images


def test_unknown_price_is_an_error_and_never_zero(tmp_path):
    assert "flex" not in load("gpt-4.1").prices
    with pytest.raises(UnknownPriceError, match=r"lane 'flex' is not known \(known: standard, batch\).*not zero"):
        load("gpt-4.1").cost(Usage(input_tokens=1, output_tokens=1), "flex")
    folder = write(tmp_path, "new.yaml", "like: gpt-6-luna\nmodel: new\nprices: {}\n")
    new = load("new", folder=folder)
    with pytest.raises(UnknownPriceError, match=r"known: none.*new.yaml|new.yaml.*known: none"):
        new.cost(Usage(input_tokens=1, output_tokens=1))
    assert load("whatever", HERE).cost(Usage(input_tokens=1, output_tokens=1)) == 0


@pytest.mark.parametrize(
    ("model", "base_url", "found"),
    [
        ("gpt-4.1", None, "gpt-4.1"),
        ("gpt-4.1-2025-04-14", OPENAI, "gpt-4.1"),
        ("gpt-4.1-mini-2025-04-14", OPENAI, "gpt-4.1-mini"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", HERE, "local"),
        ("llava", "http://localhost:11434/v1", "local"),
        ("llava", "http://10.1.2.3/v1", "local"),
        ("llava", "http://[::1]:8000/v1", "local"),
        ("llava", "http://vllm:8000/v1", "local"),
        ("llava", "http://vllm.prod.svc.cluster.local/v1", "local"),
        # A proxy on this machine sends it on to a provider that wants money.
        ("gpt-4.1", "http://localhost:4000/v1", "gpt-4.1"),
    ],
)
def test_which_profile(model, base_url, found):
    assert load(model, base_url).model == found


@pytest.mark.parametrize(
    ("model", "base_url", "like"),
    [
        ("gpt-9", OPENAI, "gpt-6-luna"),
        ("gpt-4.1", "https://me.openai.azure.com/v1", "gpt-4.1"),
        ("openai/gpt-4.1-mini", "https://openrouter.ai/api/v1", "gpt-4.1-mini"),
        ("llava", "http://8.8.8.8/v1", "gpt-6-luna"),
        ("local", OPENAI, "local"),
    ],
)
def test_strangers_are_refused_with_a_way_out(model, base_url, like):
    with pytest.raises(UnknownModelError, match=f"no profile describes the model '{model}'.*'like: {like}'"):
        load(model, base_url)


def test_own_profiles_go_first(tmp_path, monkeypatch):
    text = "like: gpt-4.1\nmodel: caption-deployment\nhosts: ['*.openai.azure.com']\nshutdown: null\n"
    folder = write(tmp_path / "mine", "azure.yaml", text)
    azure = load("caption-deployment", "https://me.openai.azure.com/v1", folder)
    assert azure.image_tokens(1024, 1024) == 765
    assert azure.price("batch") == load("gpt-4.1").price("batch")
    assert azure.shutdown is None
    assert azure.file.endswith("azure.yaml")
    assert load("caption-deployment", HERE, folder).model == "local"  # another host
    monkeypatch.setenv("LENS_CAPTION_PROFILES", str(folder))
    assert load("caption-deployment", "https://me.openai.azure.com/v1") == azure
    assert list_profiles()[0] == azure


def test_own_profile_replaces_a_built_in_one_and_its_doubts(tmp_path):
    own = "like: gpt-4.1\nmodel: gpt-4.1\nprices: {standard: {input_per_million: 3, output_per_million: 9}}\n"
    profile = load("gpt-4.1", folder=write(tmp_path, "a.yaml", own))
    assert profile.cost(Usage(input_tokens=10**6, output_tokens=10**6)) == 12
    assert "batch" not in profile.prices
    assert "prices" not in profile.weak
    assert "prices" in load("gpt-4.1").weak


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "a profile is a mapping"),
        ("like: gpt-4.1\nmodel: m\nprise: {}\n", "prise.*did you mean 'prices'"),
        ("like: gpt-5\nmodel: m\n", r"mine.yaml:1: like: there is no built-in profile 'gpt-5'"),
        ("like: gpt-4.1\nmodel: m\nprices: {express: {}}\n", r"mine.yaml:3: prices"),
        (
            "like: gpt-4.1\nmodel: m\nprices:\n  standard: {input_per_million: -1, output_per_million: 1}\n",
            r"mine.yaml:4: prices.standard.input_per_million",
        ),
        ("like: gpt-4.1\nmodel: m\nimage_rule: {rule: squares}\n", r"mine.yaml:3: image_rule"),
        ("like: gpt-4.1\nmodel: m\nimage_rule: {rule: tiles, base: 85}\n", r"mine.yaml:3: image_rule.per_tile"),
        ("like: gpt-4.1\nmodel: m\nshutdown: soon\n", r"mine.yaml:3: shutdown"),
        ("like: gpt-4.1\nmodel: m\nweak: {prizes: guessed}\n", r"mine.yaml:3: weak: there is no field 'prizes'"),
        ("model: [\n", "not valid YAML"),
        ("model: m\n", "checked"),
    ],
)
def test_a_wrong_profile_says_where(tmp_path, text, message):
    folder = write(tmp_path, "mine.yaml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load("m", folder=folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"captioner's 'profiles' names the folder .*gone"):
        load("m", folder=tmp_path / "gone")
    monkeypatch.setenv("LENS_CAPTION_PROFILES", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="LENS_CAPTION_PROFILES names the folder"):
        load("m")


def test_lifecycle():
    four, nano, luna = load("gpt-4.1"), load("gpt-4.1-nano"), load("gpt-6-luna")
    warning = four.lifecycle_warning(NOV)
    assert warning == "gpt-4.1 shuts down on 2027-01-14, in 52 days; its successor is gpt-6-luna"
    assert "before this run would end (2027-01-20)" in four.lifecycle_warning(NOV, datetime.date(2027, 1, 20))
    assert four.lifecycle_warning(datetime.date(2026, 6, 1)) is None
    assert luna.lifecycle_warning(NOV) is None
    with pytest.raises(
        RetiredModelError, match=r"shut down on 2026-10-23; its successor is gpt-6-luna; .*shutdown: null"
    ):
        nano.lifecycle_warning(NOV)
    with pytest.raises(RetiredModelError):
        four.refuse_if_retired(datetime.date(2027, 1, 14))


def test_a_retired_model_can_be_called_back(tmp_path):
    folder = write(tmp_path, "nano.yaml", "like: gpt-4.1-nano\nmodel: gpt-4.1-nano\nshutdown: null\n")
    assert load("gpt-4.1-nano", folder=folder).lifecycle_warning(NOV) is None


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda profile: profile.model)
def test_built_in_profiles_are_dated_sourced_and_complete(profile):
    assert profile.sources
    assert all(len(source) > 10 for source in profile.sources)
    assert profile.checked <= datetime.datetime.now(datetime.UTC).date()
    assert "standard" in profile.prices
    assert "batch" in profile.prices
    for lane in set(profile.prices) - {"standard"}:
        assert profile.price(lane).input_per_million * 2 == profile.price("standard").input_per_million
        assert profile.price(lane).output_per_million * 2 == profile.price("standard").output_per_million
    assert profile.file == f"built in: {profile.model}.yaml"
    again = Profile.model_validate_json(profile.model_dump_json())
    assert again == profile.model_copy(update={"file": ""})


def test_successors_are_known():
    known = {profile.model for profile in list_profiles()}
    assert {profile.successor for profile in list_profiles() if profile.successor} <= known


def test_text_tokens_are_about_right():
    # English prose has 4 to 5 characters per token; Chinese about one token per character.
    assert 250 <= estimate_text_tokens("a plain word " * 77) <= 270
    assert estimate_text_tokens("一二三四五六七八九十") == 18
    assert estimate_text_tokens("") == 8


def observed(profile, *, text, factor=1.0, sizes=SIZES):
    return [
        Observation(
            width=width,
            height=height,
            input_tokens=round(text + factor * profile.image_tokens(width, height)),
            output_tokens=100,
        )
        for width, height in sizes
    ]


def test_calibration_finds_text_and_factor():
    luna = load("gpt-6-luna")
    right = calibrate(observed(luna, text=250), luna)
    assert right.known
    assert right.text_tokens == pytest.approx(250)
    assert right.factor == pytest.approx(1)
    assert right.off == pytest.approx(0, abs=1e-9)
    dear = calibrate(observed(luna, text=250, factor=1.35), luna)
    assert dear.factor == pytest.approx(1.35, abs=0.002)
    assert dear.text_tokens == pytest.approx(250, abs=2)
    assert dear.off == pytest.approx(0.35, abs=0.002)


def test_calibration_on_one_size_puts_all_into_the_text():
    luna = load("gpt-6-luna")
    one = calibrate(observed(luna, text=250, factor=2, sizes=[(512, 512)] * 5), luna)
    assert not one.known
    assert one.factor == 1
    assert one.input_tokens(luna.image_tokens(512, 512)) == 250 + 2 * 308
    with pytest.raises(ValueError, match="no answer"):
        calibrate([], luna)


def test_a_wrong_rule_is_off_and_the_right_one_is_named():
    four, luna = load("gpt-4.1"), load("gpt-6-luna")
    answers = observed(four, text=258)
    assert calibrate(answers, luna).off > 0.03
    named = fitting_rules(answers, list_profiles())
    assert "gpt-4.1" in named
    assert "gpt-4o" in named
    assert "gpt-6-luna" not in named


def test_the_profile_of_the_how_to(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "quote-a-run.md").read_text()
    text = page.split("```yml\n")[1].split("```")[0]
    profile = load("my-deployment", "https://me.openai.azure.com/v1", write(tmp_path, "azure.yaml", text))
    assert profile.price("batch").output_per_million == Decimal("0.275")
    assert profile.image_rule == load("gpt-6-luna").image_rule
    assert profile.sources == ["our contract of 3 November"]


def test_models_command(lens, tmp_path):
    folder = write(tmp_path / "mine", "new.yaml", "like: gpt-6-luna\nmodel: new\nprices: {}\n")
    table = lens("caption", "models", "--profiles", str(folder))
    assert table.returncode == 0, table.stderr
    for word in ("gpt-4.1", "2027-01-14", "then gpt-6-luna", "gone", "0.05/0.25", "from memory"):
        assert word in table.stdout
    first, *_ = (line for line in table.stdout.splitlines() if line.startswith("new"))
    assert first.split()[1:4] == ["-", "-", "-"]
    listed = json.loads(lens("caption", "models", "--json").stdout)
    luna = next(item for item in listed if item["model"] == "gpt-6-luna")
    assert Decimal(luna["prices"]["flex"]["output_per_million"]) == Decimal("0.25")


def test_a_file_in_the_place_of_a_command_is_told_its_command(lens, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    result = lens("caption", "photo.jpg")
    assert result.returncode == 2
    assert result.stderr.strip() == "lens: to caption a file: lens caption preview photo.jpg"
