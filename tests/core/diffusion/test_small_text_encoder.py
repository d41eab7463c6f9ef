"""The small text encoder: any text has tokens, and a prompt's features are its own."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from lens_core.diffusion.ragged import offsets_of
from lens_core.diffusion.text_encoders.small.config import SmallTextEncoderConfig
from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder, learn_vocabulary

CAPTIONS = ["a red circle on a white field", "two blue squares", "a large green star above a small one", "ein Kreis"]
CONFIG = SmallTextEncoderConfig(vocab_size=310, width=24, heads=3, layers=2, max_tokens=64)


@pytest.fixture(scope="module")
def encoder():
    return SmallTextEncoder.fit(CONFIG, CAPTIONS)


@pytest.fixture(scope="module")
def patient():
    """An encoder that takes the longest prompts."""
    return SmallTextEncoder.fit(CONFIG.model_copy(update={"max_tokens": 4096}), CAPTIONS)


def features(encoder, texts):
    ids = encoder.tokenize(texts)
    (layer,) = encoder(torch.tensor([i for one in ids for i in one], dtype=torch.long), offsets_of(map(len, ids)))
    return layer.split([len(one) for one in ids])


def decoded(encoder, ids):
    return decoders.ByteLevel().decode([encoder.tokenizer.id_to_token(i) for i in ids])


def test_vocabulary_is_the_same_in_another_process():
    """Many pairs occur equally often here, and who comes first must not depend on a hash seed."""
    code = (
        "import json, sys; from lens_core.diffusion.text_encoders.small.encoder import learn_vocabulary; "
        "print(learn_vocabulary(json.loads(sys.argv[1]), 310))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(CAPTIONS)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == json.loads(learn_vocabulary(CAPTIONS, 310))


def test_vocabulary_has_the_size_that_was_asked_for(encoder):
    assert encoder.tokenizer.get_vocab_size() == 310
    assert encoder.embedding.weight.shape == (310, 24)


def test_vocabulary_learns_the_words_of_the_captions(patient):
    fresh = SmallTextEncoder.fit(CONFIG, [])
    assert len(patient.tokenize(["green star"])[0]) < len(fresh.tokenize(["green star"])[0])


def test_weights_depend_on_captions_and_seed_alone():
    torch.manual_seed(1)
    first = SmallTextEncoder.fit(CONFIG, CAPTIONS, seed=5).state_dict()
    torch.manual_seed(2)
    same = SmallTextEncoder.fit(CONFIG, CAPTIONS, seed=5).state_dict()
    other = SmallTextEncoder.fit(CONFIG, CAPTIONS, seed=6).state_dict()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


@given(st.text(max_size=60))
@example("猫と犬 🐈‍⬛\x00\n\tgrün  zwei   Lücken")
@example("<|endoftext|> [UNK] ĠĠ")
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(patient, text):
    """Nothing is unknown and nothing is lost but the spaces around it."""
    (ids,) = patient.tokenize([text])
    stripped = text.strip()
    assert decoded(patient, ids) == (f" {stripped}" if stripped else "")


def test_spaces_around_a_prompt_change_nothing(encoder):
    plain, spaced = encoder.tokenize(["a red circle", "\n  a red circle\t"])
    assert plain == spaced


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_text_has_no_tokens(encoder, text):
    assert encoder.tokenize([text, "a"])[0] == []


def test_long_text_is_cut_off(encoder, patient):
    text = "a red circle " * 100
    assert encoder.tokenize([text]) == [patient.tokenize([text])[0][:64]]
    (layer,) = features(encoder, [text])
    assert layer.shape == (64, 24)


def test_packing_changes_nothing(patient):
    encoder = copy.deepcopy(patient).double()
    texts = ["", *CAPTIONS, "", CAPTIONS[0] * 9]
    for text, packed in zip(texts, features(encoder, texts), strict=True):
        torch.testing.assert_close(packed, features(encoder, [text])[0], rtol=0, atol=1e-10)


def test_nothing_but_empty_prompts(encoder):
    assert features(encoder, ["", ""])[0].shape == (0, 24)


def test_position_matters(encoder):
    first, second = features(encoder, ["red red"])[0]
    assert (first - second).abs().max() > 1e-3


def test_without_layers_it_is_the_embeddings():
    encoder = SmallTextEncoder.fit(CONFIG.model_copy(update={"layers": 0}), CAPTIONS)
    (ids,) = encoder.tokenize(["a star"])
    expected = encoder.embedding.weight[ids] + encoder.position.weight[: len(ids)]
    assert torch.equal(features(encoder, ["a star"])[0], expected)


def test_a_folder_brings_it_back(encoder, tmp_path):
    encoder.save(tmp_path)
    again = SmallTextEncoder.from_folder(CONFIG, tmp_path)
    assert again.tokenize(CAPTIONS) == encoder.tokenize(CAPTIONS)
    assert torch.equal(torch.cat(features(again, CAPTIONS)), torch.cat(features(encoder, CAPTIONS)))


def test_every_weight_learns(encoder):
    encoder.zero_grad(set_to_none=True)
    torch.cat(features(encoder, CAPTIONS)).sin().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []
    encoder.zero_grad(set_to_none=True)
