"""The card says what the model is, what it was made from, and what may be done with it."""

from __future__ import annotations

import yaml

from lens_train.export.model_card import model_card

STATS = {
    "parameters": 4255040,
    "steps": 10,
    "images": 640,
    "training_images": 200,
    "training_flops": 1.25e13,
    "image_size": (32, 48),
}
PARENTS = [{"name": "dense", "type": "captions", "hash": "ab" * 32}]


def test_from_scratch():
    card = model_card("model", stats=STATS, parents=PARENTS, licence="Research only.")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "text-to-image"
    for words in ("Trained from scratch.", "4,255,040", "10, 640", "1.25e+13", "48 x 32", "ab" * 32, "Research only."):
        assert words in body
    assert "lora" not in body
    assert "![" not in body


def test_an_adapter_on_a_model():
    card = model_card(
        "model", stats=STATS, parents=PARENTS, licence="", start="models/lens", adapter="lokr", grid="grid.png"
    )
    for words in ("A lokr on `models/lens`.", "![Sample pictures](grid.png)", "Nobody has said", "for ComfyUI"):
        assert words in card
    dora = model_card("model", stats=STATS, parents=PARENTS, licence="", start="models/lens", adapter="dora")
    assert "ComfyUI" not in dora
