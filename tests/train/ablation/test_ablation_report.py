"""The report: its numbers are those of the rows, its words claim no more than they do, and a browser shows it whole."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import math
import re
from statistics import fmean

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

from caption.browser import Browser
from lens_core.errors import ArtifactError, ConfigError
from lens_train.ablation.figures import scale, training
from lens_train.ablation.figures.look import compact, from_zero, new_figure
from lens_train.ablation.figures.pictures import pictures_figure
from lens_train.ablation.figures.scale import axis_figure
from lens_train.ablation.findings import Axis, Findings, Noise
from lens_train.ablation.measurements import Picture, find_arm, load_ablation
from lens_train.ablation.page import Section, Table, markdown_page
from lens_train.ablation.scaling import BreakEven, Factor, Point, break_even, equivalent_scale
from lens_train.ablation.sentences import in_short, points, probability, told_break_even, told_factor, verdicts
from lens_train.ablation.statistics import Difference
from lens_train.stages.ablation_report.config import AxisConfig, NoiseConfig, PriceConfig
from train.ablation import made_up

HOSTILE = "</style><script>document.title='pwned'</script>|[x](javascript:1) `$x$` ~~*_{{7*7}} &lt;"


class Reader(html.parser.HTMLParser):
    """What a page holds: its tags with attributes, its text, and its tables as lists of rows of texts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.tables, self.in_cell = [], "", [], False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in {"td", "th"}:
            self.in_cell = False

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def report(lens_registry, run_stage):
    """Run the stage: `report([artefacts], title=…)` gives its folder and stats."""

    def run(inputs, **options):
        config = {"name": "proof", "type": "ablation-report", "source": [made.name for made in inputs], **options}
        return run_stage(lens_registry, lens_registry.parse("stages", config), inputs)

    return run


@pytest.fixture(scope="module")
def artifacts(publish_for_all):
    """The four made-up ablations."""
    main = made_up.captions().publish(publish_for_all, pictures=made_up.PROMPTS)
    return [main, *(make().publish(publish_for_all) for make in (made_up.sizes, made_up.noise, made_up.others))]


@pytest.fixture(scope="module")
def folder(report, artifacts):
    """The whole report."""
    settings = {"baselines": made_up.BASELINES, "axes": made_up.AXES, "noise": made_up.NOISE}
    folder, stats_ = report(artifacts, title="What a caption is worth", **settings)
    assert stats_["ablations"] == 4
    assert stats_["figures"] == len(list((folder / "figures").iterdir()))
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Reader((folder / "report.html").read_text())


def without_training(made):
    made.rows = [row for row in made.rows if row["metric"] in {"accuracy", "distance"}]
    return made


def shares(artifact, arm, skill, style):
    """Accuracies by seed, straight from the file of rows."""
    table = pq.read_table(artifact.url + "/rows.parquet").to_pylist()
    wanted = {"metric": "accuracy", "arm": arm, "skill": skill, "style": style}
    return [row["correct"] / row["n"] for row in table if wanted.items() <= row.items()]


def welch(artifact, arm, baseline, skill):
    """Difference, reach of its interval and p by scipy's test, from the main ablation's rows."""
    arms = {"alt-text": "alt-text", "brief": "brief", "mixed": "dense", "dense": "dense"}
    one, other = (shares(artifact, name, skill, arms[name]) for name in (arm, baseline))
    test = stats.ttest_ind(one, other, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return fmean(one) - fmean(other), (high - low) / 2, test.pvalue


def interval(values):
    """scipy's own t interval, in whole per cent as the page says it."""
    low, high = stats.t.interval(0.95, len(values) - 1, loc=fmean(values), scale=stats.sem(values))
    return f"{100 * fmean(values):.0f} ({100 * max(0, low):.0f}–{100 * min(1, high):.0f})"


def test_the_first_table_says_what_the_rows_say(page, artifacts):
    head, *rows = page.tables[0]
    assert head[:6] == ["arm", "seeds", "words", "attributes", "bits", "TFLOP"]
    assert [row[0] for row in rows] == ["alt-text", "brief", "mixed", "dense"]
    for row in rows:
        own = "dense" if row[0] == "mixed" else row[0]
        words = made_up.WORDS[row[0]]
        assert row[1:5] == ["3", f"{words:.1f}", f"{words / 2:.1f}", f"{0.6 * words + 0.4:.1f}"]
        assert row[5] == "22.02"
        for place, skill in ((6, "single"), (9, "two")):
            values = shares(artifacts[0], row[0], skill, own)
            assert row[place] == interval(values)
            if row[0] == "brief":
                assert row[place + 1 : place + 3] == ["–", "–"]
                continue
            apart, reach, _ = welch(artifacts[0], row[0], "brief", skill)
            ends = [100 * apart, 100 * (apart - reach), 100 * (apart + reach)]
            if min(map(abs, ends)) >= 0.5:  # closer to zero there is a digit more
                assert row[place + 1] == "{:+.0f} ({:+.0f} to {:+.0f})".format(*ends).replace("-", "−")


def test_p_values_are_holms_over_all_skills(folder, artifacts):
    rows = list(csv.DictReader(io.StringIO((folder / "tables/accuracy.csv").read_text())))
    found = [r for r in rows if (r["ablation"], r["arm"], r["prompts"]) == ("captions", "dense", "own")]
    assert [row["skill"] for row in found] == list(made_up.SKILLS)
    raw = [welch(artifacts[0], "dense", "brief", row["skill"])[2] for row in found]
    assert [float(row["p"]) for row in found] == pytest.approx(raw)
    for row in found:
        assert (row["baseline"], row["test"], row["interval_over"]) == ("brief", "welch", "seeds")
    order = np.argsort(raw)
    steps = np.maximum.accumulate(np.minimum(1, (len(raw) - np.arange(len(raw))) * np.array(raw)[order]))
    assert [float(found[place]["p_holm"]) for place in order] == pytest.approx(list(steps))


def test_all_styles_count_the_same(folder, artifacts):
    told = json.loads((folder / "tables/findings.json").read_text())
    results = told["comparisons"][0]["results"]
    (found,) = [r for r in results if (r["arm"], r["prompts"], r["skill"]) == ("dense", "all", "two")]
    by_style = [shares(artifacts[0], "dense", "two", style) for style in made_up.STYLES]
    assert found["seeds"] == pytest.approx({str(s): np.mean(by_style, axis=0)[s] for s in range(3)})
    assert told["comparisons"][0]["equal"] == {arm: {"flops": 2.2e13} for arm in made_up.WORDS}
    assert told["comparisons"][0]["training_flops_apart"] == 0


def test_every_arm_style_and_skill_is_on_the_page(page):
    text = page.text
    for arm in ("alt-text", "brief", "mixed", "dense", "brief-small", "dense-large", "wrong-20", "no-colour †"):
        for skill in made_up.SKILLS:
            assert f"{arm}, {skill}" in text
        for style in ("alt-text", "brief", "dense"):
            assert f"{arm}, {style}" in text
    assert "dense, dense (own)" in text
    assert "mixed, dense (own)" in text
    assert "no-style †, dense (own)" not in text


def listed(text, title):
    return re.search(rf"## {title}\n\n(.*?)\n\n## ", text, re.DOTALL)[1].splitlines()


def test_claims_are_made_only_of_what_was_shown(folder):
    text = (folder / "report.md").read_text()
    shown, rest = listed(text, "What was shown"), listed(text, "What was not shown")
    assert any(line.startswith("- captions: dense against brief on single object: better, +") for line in shown)
    assert any(line.startswith("- captions: alt-text against brief on two objects: worse, −") for line in shown)
    assert not any("mixed" in line for line in shown)
    assert any("captions: mixed against brief on two objects: no difference shown" in line for line in rest)
    assert not any(line.startswith("- sizes") for line in shown + rest)  # they serve the curves
    assert any(line.startswith("- noise: wrong-20 against captions/dense on two objects: worse, −") for line in shown)
    assert "- others: shuffled, no-colour: fewer than three seeds, exploratory; nothing is claimed." in rest
    assert any(line.startswith("- parameters, two objects: dense is worth ") for line in shown)
    cancelled = "- share of wrong facts, two objects, the gain of dense over brief: cancelled at "
    assert any(line.startswith(cancelled) for line in shown + rest)
    assert "Each run was given 2.2e+13 training FLOPs. The arms' mean training FLOPs lie 0.00 % apart at most." in text


def test_the_known_factor_and_break_even_come_back(folder):
    told = json.loads((folder / "tables/findings.json").read_text())
    for axis in told["axes"]:
        assert [point["x"] for point in axis["kinds"][0]["points"]] == [0.6e6, 2.4e6, 9.6e6]
        assert axis["factor"]["low"] < axis["factor"]["value"] < axis["factor"]["high"]
        assert axis["factor"]["value"] == pytest.approx(2 ** (0.22 / 0.11), rel=0.12)
    for noise in told["noise"]:
        assert noise["cancelled"]["value"] == pytest.approx(0.22 / 1.4, rel=0.15)
        assert noise["cancelled"]["low"] < noise["cancelled"]["value"]


def test_captions_are_paid_once_each(folder, page):
    dollars = json.loads((folder / "tables/findings.json").read_text())["comparisons"][0]["caption_dollars"]
    # 20,000 images of 765 tokens at 2 dollars a million, and 27.3 words of 1.3 tokens at 8 dollars.
    assert dollars["dense"] == pytest.approx(20_000 * (765 * 2 + 27.3 * 1.3 * 8) / 1e6)
    assert "hypothetical" in page.text
    assert "GPT-4.1, list prices of April 2025" in page.text
    assert f"{dollars['dense']:.2f}" in page.text


def test_figures_are_pictures_of_a_width_that_pages_show(folder):
    names = {file.name for file in (folder / "figures").iterdir()}
    assert {"overview.png", "scale-1.png", "noise-1.png", "captions-skills.png", "captions-pictures.png"} <= names
    assert {"captions-loss.png", "captions-validation.png", "captions-score-1.png", "captions-score-2.png"} <= names
    for file in (folder / "figures").iterdir():
        with Image.open(file) as image:
            assert image.width == 1400
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert "others-pictures.png" not in names


def test_pictures_of_two_arms_leave_no_half_white():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    drawn = [Picture(prompt="a red circle", png=stream.getvalue())]
    with Image.open(io.BytesIO(pictures_figure({"one": drawn, "other": drawn}, 1))) as image:
        columns = np.asarray(image.convert("L")).min(axis=0)
    assert np.flatnonzero(columns < 250)[-1] > 0.97 * len(columns)


def test_shares_are_not_drawn_below_zero():
    axes = new_figure(2).subplots()
    axes.plot([0, 1], [0, 0])
    from_zero(axes)
    low, high = axes.get_ylim()
    assert low == 0 < high


def axis_config():
    kinds = {kind: {"name": kind, "arms": ["a", "b", "c"]} for kind in ("long", "short")}
    return AxisConfig(label="size", metric="parameters", **kinds)


def test_panels_of_an_axis_show_all_of_both(monkeypatch):
    """They share their axis, and the second may lie lower than the first."""
    shown = []
    monkeypatch.setattr("lens_train.ablation.figures.scale.png", lambda figure: shown.extend(figure.axes))
    config = axis_config()
    axes = []
    for lowest in (0.6, 0.02):
        points = [Point(x=10.0**n, values=(lowest + 0.1 * n, lowest + 0.1 * n + 0.02)) for n in range(3)]
        axes.append(axis_of(points, points, config=config))
    axis_figure(axes, {"long": "red", "short": "blue"})
    low, high = shown[1].get_ylim()
    assert low == pytest.approx(0, abs=2)
    assert high > 80


def test_arms_that_were_given_more_and_less_are_not_called_equal(publish, report):
    made = made_up.Ablation("compute", {"half": "dense", "twice": "dense"}, equal={"flops": 1.1e13})
    made.budgets["twice"] = {"flops": 4.4e13}
    for arm, flops in (("half", 1.1e13), ("twice", 4.4e13)):
        made.score(arm, made_up.SKILLS)
        made.train(arm, words=27.3, flops=flops)
    folder, _ = report([made.publish(publish)], headline=["single"])
    text = (folder / "report.md").read_text()
    assert "Arms were given more and less: 1.1e+13 to 4.4e+13 training FLOPs." in text
    assert "apart at most" not in text


def test_arms_may_have_baselines_of_their_own(publish, report):
    arms = {f"{style}-{size}": style for size in ("half", "twice") for style in ("brief", "dense")}
    made = made_up.Ablation("compute", arms)
    for arm, style in arms.items():
        made.score(arm, {"single": 0.3 + 0.2 * ("twice" in arm) + 0.3 * (arm == "dense-twice")}, n=5000, spread=0)
        made.train(arm, words=made_up.WORDS[style], flops=1.1e13 if "half" in arm else 4.4e13)
    baselines = {"compute": {"dense-half": "brief-half", "dense-twice": "brief-twice"}}
    kinds = {
        kind: {"name": style, "arms": [f"compute/{style}-half", f"captions/{style}", f"compute/{style}-twice"]}
        for kind, style in (("long", "dense"), ("short", "brief"))
    }
    axes = [{"label": "training FLOPs", "metric": "training_flops", **kinds}]
    made = [made_up.captions().publish(publish), made.publish(publish)]
    folder, _ = report(made, baselines=baselines, axes=axes, headline=["single"])
    rows = list(csv.DictReader(io.StringIO((folder / "tables/accuracy.csv").read_text())))
    found = {
        r["arm"]: r["baseline"]
        for r in rows
        if (r["ablation"], r["prompts"], r["skill"]) == ("compute", "own", "single")
    }
    assert found == {"brief-half": "", "dense-half": "brief-half", "brief-twice": "", "dense-twice": "brief-twice"}
    text = (folder / "report.md").read_text()
    shown = text.split("## What was shown")[1].split("## ")[0]
    assert "compute: dense-twice against brief-twice on single object: better, +30 points" in shown
    assert "| dense-twice (against brief-twice) | 3 |" in text


def test_an_ablation_may_be_told_of_against_several_baselines(publish, report):
    artifact = made_up.captions().publish(publish)
    folder, _ = report([artifact], baselines={"captions": ["brief", "alt-text"]}, headline=["single"])
    rows = list(csv.DictReader(io.StringIO((folder / "tables/accuracy.csv").read_text())))
    found = [(r["arm"], r["baseline"]) for r in rows if (r["prompts"], r["skill"]) == ("own", "single")]
    others = ["alt-text", "brief", "mixed", "dense"]
    assert found == [(a, b if a != b else "") for b in ("brief", "alt-text") for a in others]
    text = (folder / "report.md").read_text()
    assert text.count("## captions: training and what it cost") == 1
    against = text.split("## captions: every skill, against alt-text")[1].split("## ")[0]
    difference, *_ = welch(artifact, "dense", "alt-text", "single")
    row = next(line for line in against.splitlines() if line.startswith("| dense, single |"))
    assert f"| {interval(shares(artifact, 'dense', 'single', 'dense'))} | +{100 * difference:.0f} (" in row
    assert "captions: dense against alt-text on single object: better" in text
    assert (folder / "figures" / "captions-against-alt-text.png").is_file()


def test_curves_may_be_read_at_skills_of_their_own(publish, report):
    made = [made_up.captions().publish(publish), made_up.noise().publish(publish)]
    (noise,) = made_up.NOISE
    folder, _ = report(made, headline=["single"], noise=[{**noise, "skills": ["count", "two"]}])
    found = json.loads((folder / "tables/findings.json").read_text())["noise"]
    assert [entry["skill"] for entry in found] == ["count", "two"]


def test_seven_skills_are_drawn_in_rows_of_three(monkeypatch):
    shown = []
    monkeypatch.setattr(scale, "png", lambda figure: shown.append(figure) or b"")
    points = [Point(x=10.0**n, values=(0.1 * n, 0.1 * n + 0.02)) for n in range(3)]
    axis_figure([axis_of(points, points, config=axis_config())] * 7, {"long": "red", "short": "blue"})
    rows = {axes.get_subplotspec().rowspan.start for axes in shown[0].axes}
    assert (len(shown[0].axes), rows) == (7, {0, 1, 2})
    shown[0].draw_without_rendering()
    widths = [axes.get_position().width for axes in shown[0].axes]
    assert min(widths) > 0.2  # of the figure: what is said above a panel takes no room from it


def test_learning_is_shown_against_all_that_it_took(monkeypatch, publish):
    """Steps, images, tokens, FLOPs, and dollars for the captions of the distinct images seen so far."""
    shown = []
    monkeypatch.setattr(training, "png", lambda figure: shown.append(figure) or b"")
    made = load_ablation(made_up.captions().publish(publish))
    training.learning_figure(made, "score", "single", dict.fromkeys(made.arms, "red"), PriceConfig())
    (figure,) = shown
    told = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_xlabel()}
    assert list(told) == ["steps", "images seen", "tokens seen", "training FLOPs", "hypothetical caption dollars"]
    ends = {name: {line.get_label(): line.get_xdata()[-1] for line in axes.lines} for name, axes in told.items()}
    assert ends["training FLOPs"]["dense"] == pytest.approx(2.2e13)
    assert ends["images seen"]["dense"] == 60_000 - 500 * 27
    dollars = (765 * 2 + 27.3 * 1.3 * 8) / 1e6  # of a caption, by the list prices
    assert ends["hypothetical caption dollars"]["dense"] == pytest.approx(20_000 * dollars)


def test_stages_that_measure_alike_are_arms_of_their_own(publish):
    made = made_up.Ablation("guidance", {"dense": "dense", "brief": "brief"}, seeds=[0], equal={"flops": 1e12})
    for arm in ("dense", "brief"):
        made.train(arm, words=27.3)
    for stage, right in (("weak", 20), ("strong", 80)):
        answers = {"skill": "single", "style": "dense", "correct": right, "n": 100}
        made.add("dense", 0, "accuracy", right / 100, stage=stage, **answers)
    made.add("brief", 0, "accuracy", 0.4, stage="weak", skill="single", style="brief", correct=40, n=100)
    made.add("brief", 0, "distance", 0.1, stage="far", skill="kid")
    loaded = load_ablation(made.publish(publish))
    assert loaded.arms == {"dense/weak": "dense", "dense/strong": "dense", "brief": "brief"}
    shares = {arm: loaded.counts(arm, "single", "own")[0].share for arm in loaded.arms}
    assert shares == {"dense/weak": 0.2, "dense/strong": 0.8, "brief": 0.4}
    assert {loaded.known(arm, "parameters") for arm in loaded.arms} == {2.4e6}
    assert find_arm({"guidance": loaded}, "guidance/dense/strong")[1] == "dense/strong"
    assert len(loaded.curves("dense/weak", "loss")[0]) == len(loaded.curves("brief", "loss")[0]) == 60


def test_pictures_of_other_words_are_told(publish, report):
    made = made_up.captions().publish(publish, pictures=made_up.PROMPTS, rewritten=("dense",))
    text = (report([made])[0] / "report.md").read_text()
    assert "For dense, a rewriter put the request into the words of the captions first." in text


def test_the_markdown_stands_on_its_own(folder):
    text = (folder / "report.md").read_text()
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(links) == len(set(links)) == len(list((folder / "figures").iterdir()))
    assert all((folder / link).is_file() for link in links)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.splitlines()
        assert len({line.count("|") for line in lines}) == 1
    assert text.index("| arm | seeds |") < text.index("## What was shown") < text.index("## captions: every skill")


def test_the_same_rows_give_the_same_report(publish, report):
    made = without_training(made_up.others()).publish(publish)
    first, again = (report([made], pictures=0)[0] for _ in range(2))
    names = [file.relative_to(first) for file in first.rglob("*") if file.is_file()]
    assert len(names) == 7
    for name in names:
        assert (again / name).read_bytes() == (first / name).read_bytes()


def test_a_browser_shows_it_whole_and_asks_for_nothing(folder, tmp_path):
    browser = Browser(tmp_path)
    try:
        browser.open((folder / "report.html").as_uri())
        browser.settle()
        sizes = browser.see("[...document.images].map(image => [image.complete, image.naturalWidth])")
        headings = browser.see("[...document.querySelectorAll('h2')].map(element => element.textContent)")
        paper = browser.see("getComputedStyle(document.body).backgroundColor")
    finally:
        browser.close()
    assert browser.complaints == []
    assert [url for url in browser.asked if not url.startswith("data:")] == [(folder / "report.html").as_uri()]
    assert sizes == [[True, 1400]] * len(list((folder / "figures").iterdir()))
    assert headings[:3] == ["In one table", "What was shown", "What was not shown"]
    assert paper == "rgb(251, 250, 248)"  # the style sheet is in force


def test_hostile_words_stay_words(publish, report):
    made = made_up.Ablation("captions", {HOSTILE: "dense", "brief": "brief"})
    for arm in made.arms:
        made.score(arm, {HOSTILE: 0.7, "two": 0.5})
        made.train(arm, words=7)
    artifact = made.publish(publish, pictures=[HOSTILE])
    folder, _ = report([artifact], title=HOSTILE, headline=[HOSTILE])
    page = Reader((folder / "report.html").read_text())
    assert not {"script", "iframe", "link", "object", "base", "a"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(attributes["src"].startswith("data:image/png;base64,") for tag, attributes in page.tags if tag == "img")
    assert [row[0] for row in page.tables[0][1:]] == [HOSTILE, "brief"]
    text = (folder / "report.md").read_text()
    assert "<script" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_markdown_keeps_words_as_they_are():
    table = Table(caption="a_b", head=["x|y", "n"], rows=[["<i>", "1\n2"], ["$z$", "&amp;"]])
    text = markdown_page("*t*", [Section(title="`s`", points=["[p](q)"], tables=[table])], made_by="m")
    assert text.splitlines()[::2][:4] == ["# \\*t\\*", "## \\`s\\`", "- \\[p\\](q)", "a\\_b"]
    assert "| x&#124;y | n |\n|---|---:|\n| &#60;i&#62; | 1 2 |\n| &#36;z&#36; | &amp;amp; |" in text


def test_an_arm_without_a_style_is_judged_on_all(page):
    (row,) = [row for table in page.tables for row in table if row[0] == "no-style †, single"]
    assert row[1:4] == ["–", "–", "–"]
    assert re.fullmatch(r"\d+ \(\d+–\d+\)", row[4])


def test_an_ablation_without_scores_has_its_costs(publish, report):
    main, bare = without_training(made_up.others()), made_up.Ablation("bare", {"a": None, "b": None})
    for arm in bare.arms:
        bare.train(arm, words=7)
    folder, _ = report([main.publish(publish), bare.publish(publish)])
    text = (folder / "report.md").read_text()
    assert "## bare: training and what it cost" in text
    assert "## bare: every skill" not in text
    assert "## others: distance from real images" in text
    assert "| shuffled † | 0.12 |" in text
    assert "Nothing that was tested." in text


def test_a_fast_run_of_one_seed_claims_nothing(publish, report):
    """All that a trial run leaves: one seed, hardly any training, nothing drawn right, no curves."""
    made = made_up.Ablation(
        "captions", {f"{style}-{size}": style for style in ("brief", "dense") for size in "sml"}, (0,)
    )
    for arm in made.arms:
        for skill in ("single", "two"):
            made.add(arm, 0, "accuracy", 0.0, skill=skill, style=made.arms[arm], correct=0, n=8)
        made.add(arm, 0, "parameters", 1e6 * 2 ** "sml".index(arm[-1]))
    kinds = {
        kind: {"name": style, "arms": [f"captions/{style}-{size}" for size in "sml"]}
        for kind, style in (("long", "dense"), ("short", "brief"))
    }
    noise = [{"shares": {"captions/dense-s": 0, "captions/dense-m": 0.1}, "rival": "captions/brief-s"}]
    folder, _ = report([made.publish(publish)], axes=[{"label": "parameters", **kinds}], noise=noise)
    text = (folder / "report.md").read_text()
    assert listed(text, "What was shown")[2:] == ["- Nothing that was tested."]
    assert "- single object: no factor: one of the two is not sure to grow along the axis" in text
    assert "- single object: no gain to cancel (no interval: one seed a place)" in text
    assert "| dense-s † | 1 | – | – | – | – | 0 (0–32) | 0 (−32 to +32) | – |" in text
    assert "No budget was set for all runs together." in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baselines": {"captions": "none"}}, "names the arm 'none', and there is none; there are captions/alt-text"),
        ({"baselines": {"captions": {"none": "dense"}}}, "baselines name none, but the arms of captions are alt-text"),
        ({"baselines": {"other": "dense"}}, "baselines name other, but the sources are captions"),
        ({"headline": ["juggling"]}, "headline names the skill 'juggling', but captions was judged on single, two"),
        (
            {"noise": [{"shares": {"captions/dense": 0.1, "captions/mixed": 0.2}, "rival": "captions/brief"}]},
            "the noise 'share of wrong facts' needs an arm without mistakes: one with the share 0",
        ),
        (
            {"noise": [{"shares": {"captions/dense": 0, "captions/mixed": 0}, "rival": "captions/brief"}]},
            "of the noise 'share of wrong facts', two arms have the same share of mistakes",
        ),
        ({"noise": made_up.NOISE}, "names the arm 'noise/wrong-5', and there is none"),
        (
            {"axes": [{"label": "x", **{k: {"name": k, "arms": ["captions/dense"] * 3} for k in ("long", "short")}}]},
            "the axis 'x' has two of captions/dense, captions/dense, captions/dense at the same place",
        ),
    ],
)  # fmt: skip
def test_settings_that_name_what_is_not_there(artifacts, report, settings, message):
    with pytest.raises(ConfigError) as caught:
        report(artifacts[:1], **settings)
    assert message in str(caught.value)


def test_damaged_artefacts_are_refused(publish):
    made = made_up.others()
    made.arms = {"shuffled": "dense"}  # its rows know more arms
    with pytest.raises(ArtifactError, match="has rows of no-colour, no-style, which are no arms of it"):
        load_ablation(made.publish(publish))
    broken = publish("ablation", "broken", lambda output: output.write_json("ablation.json", {"arms": [{"name": "a"}]}))
    with pytest.raises(ArtifactError, match="is damaged: KeyError 'style'"):
        load_ablation(broken)


def test_a_cell_with_two_trainings_cost_both_and_is_as_large_as_the_last(publish):
    made = made_up.Ablation("captions", {"tuned": "dense"}, seeds=(4,))
    for stage, flops, parameters in (("base", 3e12, 5e6), ("tuned", 1e12, 7e6)):
        made.add("tuned", 4, "training_flops", flops, stage=stage)
        made.add("tuned", 4, "parameters", parameters, stage=stage)
    loaded = load_ablation(made.publish(publish))
    assert loaded.final("tuned", "training_flops") == {4: 4e12}
    assert loaded.final("tuned", "parameters") == {4: 7e6}
    assert loaded.known("tuned", "caption_words") is None


def test_references_to_arms(artifacts):
    ablations = {artifact.name: load_ablation(artifact) for artifact in artifacts[:2]}
    assert find_arm(ablations, "sizes/dense-small")[0] is ablations["sizes"]
    assert find_arm(ablations, "dense", near="captions") == (ablations["captions"], "dense")
    with pytest.raises(ConfigError):
        find_arm(ablations, "dense")


def factor(value, low, high, levels=(0.4, 0.6)):
    return Factor(value=value, low=low, high=high, smallest=1 / 16, largest=16.0, levels=levels)


def axis_of(long, short, **more):
    more = {"config": AxisConfig(**made_up.AXES[0]), "flops": None, **more}
    return Axis(skill="x", long=long, short=short, factor=equivalent_scale(long, short), **more)


def noise_of(noisy, rival, *, gain_p):
    return Noise(
        config=NoiseConfig(**made_up.NOISE[0]),
        skill="x",
        points=noisy,
        clean="dense",
        rival="brief",
        rival_values=rival,
        gain=Difference(value=fmean(noisy[0].values) - fmean(rival), low=0, high=1, p=gain_p, basis="welch"),
        gain_p=gain_p,
        cancelled=break_even(noisy, rival),
    )


def verdict_on(*, axis=None, noise=None):
    axes, noises = [axis] if axis else [], [noise] if noise else []
    shown, rest = verdicts(Findings(comparisons=[], axes=axes, noise=noises), ["x"])
    return bool(shown), (shown + rest)[0]


def three(*means, spread=0.01, base=4):
    return [Point(x=base**place, values=(m, m + spread, m - spread)) for place, m in enumerate(means)]


def test_a_bound_needs_a_curve_that_grows():
    claimed, told = verdict_on(axis=axis_of(three(0.7, 0.8, 0.9), three(0.2, 0.3, 0.4)))
    assert claimed
    assert "dense is worth more than 16× (95 % interval beyond that) in parameters of brief" in told
    for long, short in (((0.7, 0.69, 0.67), (0.55, 0.56, 0.56)), ((0.1, 0.12, 0.12), (0.25, 0.28, 0.29))):
        claimed, told = verdict_on(axis=axis_of(three(*long), three(*short, spread=0.03)))
        assert not claimed
        assert told.endswith("no factor: one of the two is not sure to grow along the axis.")


def test_curves_that_hardly_meet_claim_nothing():
    claimed, told = verdict_on(axis=axis_of(three(0.3, 0.5, 0.7, spread=0.001), three(0.02, 0.1, 0.32, spread=0.001)))
    assert not claimed
    assert told.endswith(
        "read between 30 and 32 % accuracy; dense goes on to 70 %; they share too little to claim anything."
    )


def test_compute_that_grows_along_an_axis_of_something_else_is_said():
    curves = three(0.5, 0.6, 0.7), three(0.4, 0.5, 0.6)
    assert (
        "in parameters of brief, and of the training FLOPs that grow with them, read"
        in verdict_on(axis=axis_of(*curves, flops=(1e12, 8e12)))[1]
    )
    assert "FLOPs" not in verdict_on(axis=axis_of(*curves, flops=(1e12, 1.01e12)))[1]


def test_a_gain_is_cancelled_only_where_there_is_one():
    noisy, rival = three(0.67, 0.47, 0.14), (0.56, 0.52, 0.58)
    assert verdict_on(noise=noise_of(noisy, rival, gain_p=0.04))[0]
    claimed, told = verdict_on(noise=noise_of(noisy, rival, gain_p=0.06))
    assert not claimed
    assert told.endswith("; the gain itself is not shown.")
    # A gain that outlasts all mistakes that were measured is a finding, too.
    claimed, told = verdict_on(noise=noise_of(noisy, (0.1, 0.11, 0.09), gain_p=0.001))
    assert claimed
    assert "not cancelled by 1600 %" in told  # the places of `three`
    claimed, told = verdict_on(noise=noise_of(noisy, (0.9, 0.91, 0.89), gain_p=0.001))
    assert not claimed
    assert told.endswith("the gain of dense over brief: no gain to cancel.")


@pytest.mark.parametrize("seeds", [2, 3])
def test_curves_of_two_seeds_claim_nothing(seeds):
    def curve(*means):
        return [Point(x=4**place, values=(m, m + 0.01, m - 0.01)[:seeds]) for place, m in enumerate(means)]

    long, short = curve(0.5, 0.6, 0.7), curve(0.4, 0.5, 0.6)
    axis, noise = axis_of(long, short), noise_of(curve(0.8, 0.6, 0.4), (0.7, 0.71, 0.69), gain_p=0.01)
    shown, rest = verdicts(Findings(comparisons=[], axes=[axis], noise=[noise]), ["x"])
    assert len(shown if seeds == 3 else rest) == 2
    assert len(rest if seeds == 3 else shown) == 0
    assert all(
        line.endswith("; fewer than three seeds somewhere, exploratory.") == (seeds == 2) for line in shown + rest
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (factor(3.14, 2.0, 5.0), "3.1× (95 % interval 2.0× to 5.0×)"),
        (factor(3.14, 0.0, math.inf), "3.1× (95 % interval less than 0.06× to more than 16×)"),
        (factor(1.21, 1.043, 1.41), "1.21× (95 % interval 1.04× to 1.41×)"),
        (factor(math.inf, 3.0, math.inf), "more than 16× (95 % interval 3.0× to more than 16×)"),
        (factor(math.inf, math.inf, math.inf), "more than 16× (95 % interval beyond that)"),
        (factor(0.0, 0.0, 0.0), "less than 0.06× (95 % interval beyond that)"),
        (factor(2.0, math.nan, math.nan), "2.0× (no interval: one seed a place)"),
        (factor(math.nan, 0.0, math.inf), "no factor: one of the two is not sure to grow along the axis"),
    ],
)
def test_factors_in_words(found, words):
    assert told_factor(found) == words


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((0.12, 0.08, 0.18), "cancelled at 12 % (95 % interval 8.0 % to 18 %)"),
        ((0.03, 0.004, 0.05), "cancelled at 3.0 % (95 % interval 0.4 % to 5.0 %)"),
        ((0.12, 0.08, math.inf), "cancelled at 12 % (95 % interval 8.0 % to more than 20 %)"),
        (
            (math.inf, 0.15, math.inf),
            "not cancelled by 20 %, the most measured (95 % interval 15 % to more than 20 %)",
        ),
        ((math.inf, math.inf, math.inf), "not cancelled by 20 %, the most measured (95 % interval beyond that)"),
        ((0.0, 0.0, 0.04), "no gain to cancel (95 % interval 0 % to 4.0 %)"),
        ((0.0, 0.0, 0.0), "no gain to cancel"),
        ((0.12, math.nan, math.nan), "cancelled at 12 % (no interval: one seed a place)"),
    ],
)
def test_break_evens_in_words(found, words):
    value, low, high = found
    assert told_break_even(BreakEven(value=value, low=low, high=high, largest=0.2, rival=0.5)) == words


def test_figures_have_less_room():
    assert in_short("3.1× (95 % interval 2.0× to 5.0×)") == "3.1×, 95 %: 2.0× to 5.0×"
    beyond = "not cancelled by 20 %, the most measured (95 % interval beyond that)"
    assert in_short(beyond) == "not cancelled by 20 %, 95 %: beyond that"
    unsure = "cancelled at 2.0 % (95 % interval 0.5 % to 3.3 %); the gain itself is not shown"
    assert in_short(unsure) == "cancelled at 2.0 %, 95 %: 0.5 % to 3.3 %; gain not shown"
    bound = told_factor(Factor(value=math.inf, low=1.1, high=math.inf, smallest=0.14, largest=7.2, levels=None))
    assert in_short(bound) == "> 7.2×, 95 %: 1.10× to > 7.2×"
    assert in_short("2.0× (no interval: one seed a place)") == "2.0× (no interval: one seed a place)"


def test_numbers_in_words():
    apart = Difference(value=0.19, low=0.003, high=0.26, p=0.01, basis="welch")
    assert points(apart, unit=" points") == "+19 points (+0.3 to +26)"
    assert points(Difference(value=-0.19, low=-0.2, high=0.0, p=None, basis="prompts")) == "−19 (−20 to 0)"
    assert [probability(p) for p in (0.0004, 0.0123, 0.25, 1.0)] == ["< 0.001", "0.012", "0.25", "1.00"]
    assert [compact(n) for n in (0, 950, 2.4e6, 20_000, 2.2e13, 1.5e18)] == ["0", "950", "2.4M", "20k", "22T", "1.5E"]
