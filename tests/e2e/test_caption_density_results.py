"""What is published of the experiment on captions follows from the rows that lie beside its pipeline."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from lens_core.config.pipeline import load_pipeline
from lens_train.ablation.export import as_json
from lens_train.ablation.findings import find
from lens_train.ablation.measurements import Ablation
from lens_train.ablation.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = ROOT / "examples" / "caption-density" / "pipeline.yaml"
FINDINGS = ROOT / "docs" / "reports" / "caption-density" / "tables" / "findings.json"
PAGE = ROOT / "docs" / "explanation" / "caption-density.md"


@pytest.fixture(scope="module")
def stages(lens_registry):
    return {stage.name: stage for stage in load_pipeline(str(PIPELINE), lens_registry).stages}


@pytest.fixture(scope="module")
def ablations(stages):
    """As the report reads them, but for their pictures."""
    return {name: ablation_of(stages[name]) for name in stages["report"].sources}


def ablation_of(stage):
    folder = PIPELINE.parent / stage.results
    files = [folder / f"{arm}-{seed}.parquet" for seed in stage.seeds for arm in stage.arms]
    return Ablation(
        name=stage.name,
        arms={name: arm.style for name, arm in stage.arms.items()},
        seeds=stage.seeds,
        equal={overlay.arm: overlay.budget() for overlay in stage.overlays()},
        rows=pa.concat_tables([read_rows(str(file)) for file in files]).to_pylist(),
        pictures={},
    )


def same(one, other):
    """Equal but for the last digits of numbers, which another machine may have other ones of."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == (pytest.approx(other, rel=1e-6, abs=1e-9) if isinstance(other, float) else other)


def test_the_findings_are_those_of_the_rows(stages, ablations):
    found = json.loads(json.dumps(as_json(find(ablations, stages["report"]))))
    assert same(found, json.loads(FINDINGS.read_text()))


SKILLS = ("single", "two", "count", "colour", "position", "relation", "whole")


def rows_of(text, columns):
    """The rows of all Markdown tables of so many columns."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.replace("*", "") for cell in row] for row in rows if len(row) == columns]


def told_by_page(section, columns):
    """The cells of a section's table by the first word of their row."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return {row[0].split()[0]: row[1:] for row in rows_of(text, columns)}


def told_by_report(ablation, against=""):
    """The report's cells of an ablation by arm and skill, with the difference to the baseline and its p value."""
    report = (FINDINGS.parents[1] / "report.md").read_text()
    rows = rows_of(report.split(f"## {ablation}: every skill{against}\n")[1].split("## ")[0], 7)
    told = {}
    for name, *cells in rows:  # "dense, single", or "dense-half (against brief-half), single"
        arm, skill = re.match(r"([\w-]+).*, (\w+)$", name).groups()
        told[arm, skill] = [cell.rstrip("‡").replace("&#60;", "<") for cell in cells[:3]]
    return told


def test_the_main_table_of_the_page_is_that_of_the_report():
    """Whose cells it has, but a skill a row."""
    told = told_by_page("What came out", 9)
    cells, others = told_by_report("captions"), told_by_report("captions", ", against alt-text")
    for skill in SKILLS:
        own = [cells[arm, skill][0] for arm in ("alt-text", "brief", "mixed", "dense")]
        assert told[skill] == [*own, *cells["dense", skill][1:], *others["dense", skill][1:]]


@pytest.mark.parametrize(
    ("section", "ablation", "small", "large"),
    [
        ("With half and with twice the compute", "compute", "half", "twice"),
        ("A smaller and a larger model", "sizes", "1m", "9m"),
        ("Fewer pictures", "data", "1k", "4k"),
    ],
)
def test_tables_of_two_scales_are_those_of_the_report(section, ablation, small, large):
    told = told_by_page(section, 9)
    cells = told_by_report(ablation)
    for skill in SKILLS:
        less, more = ([cells[f"{kind}-{scale}", skill] for kind in ("brief", "dense")] for scale in (small, large))
        means = [[kind[0].split(" (")[0] for kind in pair] for pair in (less, more)]
        assert told[skill] == [*means[0], *less[1][1:], *means[1], *more[1][1:]]


def test_the_table_of_wrong_facts_is_that_of_the_report():
    told = told_by_page("What mistakes cost", 6)
    arms = [("captions", "dense"), *(("noise", f"wrong-{share}") for share in (5, 15, 40)), ("captions", "brief")]
    for skill in SKILLS:
        assert told[skill] == [told_by_report(ablation)[arm, skill][0].split(" (")[0] for ablation, arm in arms]


def row_of(title, arm):
    """An arm's cells in a table of the report."""
    section = (FINDINGS.parents[1] / "report.md").read_text().split(f"## {title}\n")[1].split("## ")[0]
    return re.search(rf"^\| {arm}(?: †)? \| (.*) \|$", section, re.MULTILINE)[1].split(" | ")


def test_the_table_of_exploratory_arms_is_that_of_the_report(stages):
    told = told_by_page("What is it in dense captions that helps?", 9)
    arms = {"dense": "captions"} | dict.fromkeys(stages["exploratory"].arms, "exploratory")
    assert told.keys() - {"Captions"} == arms.keys()
    for arm, ablation in arms.items():
        words = row_of("In one table" if arm == "dense" else f"{ablation}: the arms", arm)[1]
        steps = row_of(f"{ablation}: training and what it cost", arm)[2]
        cells = told_by_report(ablation)
        assert told[arm] == [words, steps, *(cells[arm, skill][0].split(" (")[0] for skill in SKILLS[:-1])]


def test_every_cell_cost_what_it_was_given(ablations):
    for ablation in ablations.values():
        for arm in ablation.arms:
            for flops in ablation.final(arm, "training_flops").values():
                assert flops == pytest.approx(ablation.equal[arm]["flops"], rel=0.01)
