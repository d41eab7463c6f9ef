"""What an answer's words mean: refusals are no captions, and captions are no refusals, whatever a sign in them says."""

from __future__ import annotations

import json

import pytest

from lens_caption.captioners.answers import outcome_of_text
from lens_caption.prompts import load_recipe
from lens_caption.quality.config import RefusalGate
from lens_caption.quality.gates import refusal

REFUSALS = [
    "I'm unable to describe this image.",
    "I am sorry, but I can't help with that.",
    "I’m sorry, I can’t assist with that request.",
    "I'm not able to help with identifying people.",
    "Sorry but I cannot assist.",
    "**Sorry, can't help.**",
    "I apologize, but the image is not clear.",
    "Unfortunately, I cannot view the image.",
    "As an AI, I can't see images.",
    "Unable to process the image.",
    "Please upload the image.",
    "\"I'm sorry, I can't help with that.\"",
]
CAPTIONS = [
    '"Sorry, we\'re closed" is written in white on a red sign.',
    "“I can't help falling in love” is lettered in gold over a stage.",
    "'Sorry, we're closed' is written in white on a red sign.",
    "Sorry, the Hasbro board game, lies open on a table.",
    "A man holds a sign that says I'm sorry.",
    "A poster asks viewers to please share the road.",
    "Visitors are asked to please provide a ticket at a red counter.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_no_captions_in_whatever_layer_they_stand(text):
    outcome = outcome_of_text("k", text, load_recipe("dense-1"), {"n": 1})
    assert (outcome.status, outcome.text, outcome.detail, outcome.provenance) == ("refusal", "", text, {"n": 1})
    layered = load_recipe("layered-1")
    assert outcome_of_text("k", text, layered, {}).status == "refusal"  # in place of the JSON
    for name in ("brief", "dense"):
        answer = json.dumps({"brief": "a cat", "short": "A cat.", "dense": "A grey cat.", name: text})
        outcome = outcome_of_text("k", answer, layered, {})
        assert (outcome.status, outcome.layers, outcome.detail) == ("refusal", {}, text)


@pytest.mark.parametrize("text", CAPTIONS)
def test_captions_may_open_with_what_a_sign_says(text):
    outcome = outcome_of_text("k", f" {text}\n", load_recipe("dense-1"), {})
    assert (outcome.status, outcome.text) == ("ok", text)


@pytest.mark.parametrize("text", [*CAPTIONS[:2], *CAPTIONS[3:4], *CAPTIONS[5:]])
def test_and_pass_the_gate(text):
    assert refusal(text, RefusalGate()) is None


def test_other_answers():
    assert outcome_of_text("k", " \n", load_recipe("dense-1"), {}).status == "empty"
    broken = outcome_of_text("k", '{"brief": "a cat"', load_recipe("layered-1"), {})
    assert (broken.status, broken.detail.startswith("the answer is not JSON: ")) == ("schema-invalid", True)
