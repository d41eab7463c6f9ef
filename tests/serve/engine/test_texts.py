"""Features are remembered up to a number of bytes, the latest asked for longest."""

from __future__ import annotations

import torch

from lens_serve.engine.texts import Texts


def features(value, tokens=4):
    return [torch.full((tokens, 2), float(value))]  # 8 bytes a token


def test_what_was_put_there_comes_back():
    texts = Texts(1000)
    texts.put("a", features(1), features(2))
    texts.put("b", features(3), None)
    text, negative = texts.get("a")
    assert torch.equal(text[0], features(1)[0])
    assert torch.equal(negative[0], features(2)[0])
    assert texts.get("b")[1] is None
    assert texts.get("c") is None
    assert texts.bytes == 3 * 32


def test_the_one_not_asked_for_longest_is_forgotten():
    texts = Texts(100)
    for name in "abc":
        texts.put(name, features(0), None)
    assert texts.get("a")
    texts.put("d", features(0), None)
    assert [name for name in "abcd" if texts.get(name)] == ["a", "c", "d"]
    assert texts.bytes == 96


def test_what_is_larger_than_all_is_not_kept():
    texts = Texts(100)
    texts.put("a", features(0), None)
    large, _ = texts.put("b", features(5, tokens=13), None)
    assert torch.equal(large[0], features(5, tokens=13)[0])  # who brought it has it all the same
    assert texts.get("b") is None
    assert texts.bytes == 0


def test_the_same_key_replaces():
    texts = Texts(100)
    texts.put("a", features(1, tokens=10), None)
    texts.put("a", features(2), None)
    assert texts.bytes == 32
    assert float(texts.get("a")[0][0][0, 0]) == 2


def test_a_copy_is_kept_not_a_view_of_a_batch():
    batch = torch.zeros(1000, 2)
    texts = Texts(100)
    texts.put("a", [batch[:4]], None)
    assert texts.get("a")[0][0].untyped_storage().nbytes() == 32
