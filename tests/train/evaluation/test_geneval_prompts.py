"""GenEval's file of prompts: its lines are read as they are, and a wrong one is named."""

from __future__ import annotations

import json

import pytest

from lens_core.errors import ConfigError
from lens_train.evaluation.geneval.prompts import COLOURS, GenevalPrompt, read_prompts

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "wine glass", "count": 1, "color": "purple"},
            {"class": "apple", "count": 1, "color": "black"},
        ],
        "prompt": "a photo of a purple wine glass and a black apple",
    },
    {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a cat left of a dog",
    },
]


def write(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_lines_are_read_and_written_back(tmp_path):
    prompts = read_prompts(write(tmp_path / "p.jsonl", [*LINES[:2], "", *LINES[2:]]))
    assert list(prompts) == [1, 2, 4, 5]
    for prompt, line in zip(prompts.values(), LINES, strict=True):
        assert {"exclude": [], **line} == prompt.truth()
        assert GenevalPrompt.model_validate(prompt.truth()) == prompt
    assert len(COLOURS) == 10


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "p.jsonl:2: invalid JSON"),
        ("[]", "p.jsonl:2: input should be an object"),
        ({**LINES[0], "tag": None}, "p.jsonl:2: tag: input should be a valid string"),
        ({"tag": "x", "prompt": "p"}, "p.jsonl:2: include: field required"),
        ({**LINES[0], "include": []}, "p.jsonl:2: include: list should have at least 1 item"),
        ({**LINES[0], "include": [{"count": 1}]}, "p.jsonl:2: include.0.class: field required"),
        ({**LINES[0], "include": [{"class": "a", "count": 0}]}, "p.jsonl:2: include.0.count: input should be greater"),
        (
            {**LINES[0], "include": [{"class": "a", "count": 1, "color": "grey"}]},
            "include.0.color: input should be",
        ),
        ({**LINES[0], "include": [{"class": "a", "count": 1, "position": ["near", 0]}]}, "include.0.position.0: "),
        (
            {**LINES[0], "include": [{"class": "a", "count": 1, "position": ["above", 0]}]},
            "p.jsonl:2: include 0 is placed by include 0, which is not before it",
        ),
        ({**LINES[0], "include": [{"class": "a", "count": 1, "position": ["above", -1]}]}, "by include -1"),
        ({**LINES[0], "prompt": "x" * 70_000}, "p.jsonl:2: longer than 65536 bytes"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, said):
    with pytest.raises(ConfigError) as caught:
        read_prompts(write(tmp_path / "p.jsonl", [LINES[0], line]))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.jsonl: cannot be read: No such file"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(ConfigError, match=r"p\.jsonl: there is no prompt in it"):
        read_prompts(write(tmp_path / "p.jsonl", ["", " "]))
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"p\.jsonl:1: invalid JSON"):
        read_prompts(tmp_path / "p.jsonl")
