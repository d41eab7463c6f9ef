"""DPG-Bench's file of questions: as CSV and as JSON Lines it reads the same, and a wrong row is named."""

from __future__ import annotations

import csv
import io
import json

import pytest

from lens_core.errors import ConfigError
from lens_train.evaluation.dpg.prompts import Question, read_items

COLUMNS = (
    "item_id",
    "text",
    "keywords",
    "proposition_id",
    "dependency",
    "category_broad",
    "category_detailed",
    "tuple",
    "question_natural_language",
)
PROMPT = 'A red bus, "parked"\nbeside two cats.'
ROWS = [
    ("12", PROMPT, "", "1", "0", "entity", "whole", "entity - whole (bus)", "Is there a bus?"),
    ("12", PROMPT, "", "3", "1,2", "relation", "spatial", "relation - spatial (bus, cats)", "Is it beside them?"),
    ("12", "", "", "2", "0", "entity", "whole", "entity - whole (cats)", "Are there cats?"),
    ("coco_7", "A sky.", "", "1", "", "global", "", "", "Is it a photo?"),
]


def write(file, rows, columns=COLUMNS):
    if file.suffix == ".csv":
        stream = io.StringIO(newline="")
        csv.writer(stream).writerows([columns, *rows])
        file.write_bytes(stream.getvalue().encode())
    else:
        objects = [dict(zip(columns, row, strict=True)) for row in rows]
        file.write_text("\n".join(map(json.dumps, objects)))
    return file


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_questions_by_prompt(tmp_path, name):
    bus, sky = read_items(write(tmp_path / name, ROWS))
    assert (bus.id, bus.prompt, sky.id, sky.prompt) == ("12", PROMPT, "coco_7", "A sky.")
    assert bus.questions == (
        Question(id=1, parents=(), category="entity", text="Is there a bus?"),
        Question(id=3, parents=(1, 2), category="relation", text="Is it beside them?"),
        Question(id=2, parents=(), category="entity", text="Are there cats?"),
    )
    assert [question.id for question in sky.questions] == [1]


def test_json_may_hold_numbers_and_lists(tmp_path):
    file = tmp_path / "p.jsonl"
    row = {"item_id": 3, "text": "t", "category_broad": "e", "question_natural_language": "q"}
    rows = [{**row, "proposition_id": 1, "dependency": 0}, {**row, "proposition_id": 2, "dependency": [1]}]
    file.write_text("\n\n".join(map(json.dumps, rows)))
    (item,) = read_items(file)
    assert item.id == "3"
    assert [question.parents for question in item.questions] == [(), (1,)]


def row(**changes):
    return tuple(changes.get(name, value) for name, value in zip(COLUMNS, ROWS[0], strict=True))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(proposition_id="x")], ":2: proposition_id: input should be a valid integer"),
        ([row(proposition_id="0")], ":2: proposition_id: input should be greater than"),
        ([row(item_id="")], ":2: item_id: "),
        ([row(question_natural_language="")], ":2: question_natural_language: "),
        ([row(category_broad="")], ":2: category_broad: "),
        ([row(dependency="a,b")], ":2: dependency.0: input should be a valid integer"),
        ([row(), row()], ":3: item 12 has a question 1 already"),
        ([row(text="")], ":2: item 12 has no texts"),
        ([row(), row(proposition_id="2", text="Another.")], ":2: item 12 has 2 texts"),
        ([row(dependency="9")], ":2: question 1 depends on 9, which item 12 does not have"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, rows, said):
    file = write(tmp_path / "p.csv", [tuple(value.replace("\n", " ") for value in one) for one in rows])
    with pytest.raises(ConfigError) as caught:
        read_items(file)
    assert f"{file}{said}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", b"", "p.csv: there is no question in it"),
        ("p.csv", b"a,b\n1,2\n", "p.csv:2: item_id: field required"),
        ("p.csv", b"\xff\xfe", "p.csv: is not UTF-8"),
        ("p.csv", b'item_id,text\n"' + b"x" * 200_000 + b'"\n', "p.csv:"),
        ("p.jsonl", b"{", "p.jsonl:1: is not valid JSON"),
        ("p.jsonl", b"[" * 100_000, "p.jsonl:1: is not valid JSON"),
        ("p.jsonl", b"\n[]", "p.jsonl:2: is no JSON object"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_items(tmp_path / name)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 500
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_items(tmp_path / "absent.csv")
