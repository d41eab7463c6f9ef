"""A causal language model as text encoder: the residual stream of chosen layers, and prompts that stay plain text."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen3Model,
    T5Config,
    T5Model,
)

from core.diffusion.conftest import LENS_TINY
from core.diffusion.language_models import qwen3, shake, tokenizer
from lens_core.diffusion.ragged import offsets_of
from lens_core.diffusion.text_encoders.causal_lm import encoder as encoder_module
from lens_core.diffusion.text_encoders.causal_lm.config import CausalLMConfig
from lens_core.diffusion.text_encoders.causal_lm.encoder import CausalLMEncoder
from lens_core.diffusion.text_encoders.causal_lm.tokens import PromptTokens
from lens_core.errors import ArtifactError, ConfigError

TURN = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
TEXTS = ["a red circle on a white field", "star", "", "two blue squares left of a green star", "ein Kreis 🐈‍⬛"]
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return qwen3(tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture(scope="module")
def whole(folder):
    """The model as transformers runs it, for comparison: its last hidden state without the final norm."""
    model = Qwen3Model.from_pretrained(folder)
    model.norm = torch.nn.Identity()
    return model.eval()


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the model that a test may damage."""
    return shutil.copytree(folder, tmp_path / "qwen3")


@pytest.fixture(scope="module")
def encoder(folder):
    return make(folder, layers=(1, 3), template=TURN)


def make(folder, **options):
    return CausalLMEncoder.fit(CausalLMConfig(path=str(folder), **options), [])


def features(encoder, texts):
    """Per layer, a list of each text's features."""
    ids = encoder.tokenize(texts)
    packed = torch.tensor([index for one in ids for index in one], dtype=torch.long)
    return [layer.split([len(one) for one in ids]) for layer in encoder(packed, offsets_of([len(one) for one in ids]))]


@torch.no_grad()
def by_hand(model, ids, layer):
    """A layer's output [S, E] for one prompt, from hidden states that transformers returns without a cache."""
    out = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return out.hidden_states[layer + 1][0]


def refused(error, call):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert len(message) < 500
    return message


@pytest.mark.parametrize("layers", [(0,), (3,), (2, 0, 3), (0, 1, 2, 3)])
def test_features_are_outputs_of_layers_without_the_final_norm(folder, whole, layers):
    encoder = make(folder, layers=layers)
    for text in ("a red circle", "star"):
        (ids,) = encoder.tokenize([text])
        for layer, (found,) in zip(layers, features(encoder, [text]), strict=True):
            torch.testing.assert_close(found, by_hand(whole, ids, layer), rtol=1e-5, atol=1e-5)


def test_final_norm_would_be_something_else(folder, encoder):
    ids = [*encoder.tokens.prefix, *encoder.tokenize(["star"])[0]]
    normed = by_hand(Qwen3Model.from_pretrained(folder), ids, 3)[len(encoder.tokens.prefix) :]
    assert (features(encoder, ["star"])[1][0] - normed).abs().max() > 0.1


def test_prefix_is_context_and_not_a_feature(encoder, whole):
    """What the cached keys and values give is what the whole text gives in one go."""
    for text, first, last in zip(TEXTS, *features(encoder, TEXTS), strict=True):
        (ids,) = encoder.tokenize([text])
        assert len(first) == len(ids)
        if ids:
            complete = [*encoder.tokens.prefix, *ids]
            for layer, found in ((1, first), (3, last)):
                expected = by_hand(whole, complete, layer)[len(encoder.tokens.prefix) :]
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_prefix_is_counted(folder, encoder):
    words = AutoTokenizer.from_pretrained(folder)
    assert encoder.tokens.prefix == words("<|im_start|>user\n")["input_ids"]
    assert encoder.tokens.tail == words("<|im_end|>\n<|im_start|>assistant\n")["input_ids"]


def test_prefix_can_be_kept(folder, encoder, whole):
    kept = make(folder, layers=(1, 3), template=TURN, drop_prefix=False)
    (ids,), (shorter,) = kept.tokenize(["a star"]), encoder.tokenize(["a star"])
    assert ids == [*encoder.tokens.prefix, *shorter]
    torch.testing.assert_close(features(kept, ["a star"])[1][0], by_hand(whole, ids, 3), rtol=1e-5, atol=1e-5)


def test_neighbours_change_nothing(encoder):
    for layer, together in enumerate(features(encoder, TEXTS)):
        for text, found in zip(TEXTS, together, strict=True):
            torch.testing.assert_close(found, features(encoder, [text])[layer][0], rtol=1e-5, atol=1e-5)
        for text, found in zip(TEXTS, reversed(features(encoder, TEXTS[::-1])[layer]), strict=True):
            torch.testing.assert_close(found, together[TEXTS.index(text)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [1, 30, 10**6])
def test_many_prompts_take_several_runs(encoder, monkeypatch, limit):
    expected = features(encoder, TEXTS)
    monkeypatch.setattr(encoder_module, "TOKENS_PER_RUN", limit)
    for found, layer in zip(features(encoder, TEXTS), expected, strict=True):
        torch.testing.assert_close(torch.cat(found), torch.cat(layer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("texts", [[], [""], ["", " ", "\n\t"]])
def test_no_text_at_all(encoder, texts):
    assert encoder.tokenize(texts) == [[]] * len(texts)
    assert [layer.shape for layer in encoder(torch.zeros(0, dtype=torch.long), offsets_of([0] * len(texts)))] == [
        (0, 32),
        (0, 32),
    ]


def test_golden_features(cases, tmp_path):
    """The reference ran a tiny gpt-oss with padding; without a template it is a causal language model like others."""
    shutil.copytree(LENS_TINY / "text_encoder", tmp_path / "text_encoder")
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    encoder = CausalLMEncoder.from_folder(CausalLMConfig(layers=(0, 1, 2, 3)), tmp_path, template=None, dtype=None)
    mask = cases["encoder.attention_mask"].bool()
    found = encoder(cases["encoder.input_ids"][mask], offsets_of(mask.sum(1).tolist()))
    for layer in range(4):
        torch.testing.assert_close(found[layer], cases[f"encoder.features.{layer}"][mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        (LlamaModel, LlamaConfig(num_hidden_layers=3, hidden_size=32, intermediate_size=32, num_attention_heads=4)),
        (GPT2Model, GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=512)),
        (
            MistralModel,
            MistralConfig(
                num_hidden_layers=3,
                hidden_size=32,
                intermediate_size=32,
                num_attention_heads=4,
                num_key_value_heads=2,
                sliding_window=4,
            ),
        ),
    ],
)
def test_other_architectures(tmp_path, architecture, config):
    """Their layers have other names, and Mistral's window is shorter than the prefix."""
    shake(architecture(config)).save_pretrained(tmp_path)
    tokenizer(("<|im_start|>", "<|im_end|>")).save_pretrained(tmp_path)
    encoder = make(tmp_path, layers=(1,), template=TURN)
    plain = AutoModel.from_pretrained(tmp_path).eval()
    prefix = encoder.tokens.prefix
    for text, found in zip(TEXTS, features(encoder, TEXTS)[0], strict=True):
        if text:
            expected = by_hand(plain, [*prefix, *encoder.tokenize([text])[0]], 1)[len(prefix) :]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --- tokens ---


@pytest.mark.parametrize("text", ["a red circle", "  zwei   Lücken\n\n", "猫と犬 🐈‍⬛\x00\t", "1234567 it's", "star"])
def test_plain_text_is_tokenised_as_always(folder, encoder, text):
    assert encoder.tokens.plain(text) == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


@given(st.lists(st.sampled_from([*CONTROL, "a star", " ", "<|", "im_start", "|>", "<", "\n", "user"]), max_size=8))
@example(["<|im_end|>", "<|im_end|>"])
@settings(max_examples=100, deadline=None)
def test_a_prompt_brings_no_control_token(encoder, parts):
    text = "".join(parts)
    (ids,) = encoder.tokenize([text])
    if ids:
        assert ids[len(ids) - len(encoder.tokens.tail) :] == encoder.tokens.tail
        prompt = ids[: len(ids) - len(encoder.tokens.tail)]
        assert not encoder.tokens.control & set(prompt)
        assert encoder.tokens.backend.decode(prompt) == text


def test_control_tokens_are_those_of_the_tokenizer(folder, encoder):
    words = AutoTokenizer.from_pretrained(folder)
    assert encoder.tokens.control == {words.convert_tokens_to_ids(token) for token in CONTROL}
    assert encoder.tokens.control & set(words("".join(CONTROL))["input_ids"]) == encoder.tokens.control


def test_vocabulary_that_lists_control_tokens_among_its_words():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "<|end|>": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<|end|>"])
    tokens = PromptTokens(
        PreTrainedTokenizerFast(tokenizer_object=made), before="", after="<|end|>", drop_prefix=True, max_tokens=9
    )
    assert tokens(["a <|end|> a"]) == [[1, 1, 2]]


def test_half_a_surrogate_pair_is_replaced(encoder):
    assert encoder.tokens.plain("a\ud83d star") == encoder.tokens.plain("a? star")


def test_the_prompt_is_cut_and_never_the_template(folder, encoder):
    fixed = len(encoder.tokens.prefix) + len(encoder.tokens.tail)
    short = make(folder, layers=(1,), template=TURN, max_tokens=fixed + 3)
    (ids,) = short.tokenize(["a red circle " * 100])
    assert ids == [*short.tokens.plain("a red circle")[:3], *short.tokens.tail]
    assert len(short.tokens.prefix) + len(ids) == fixed + 3


def test_template_that_leaves_no_room(folder, encoder):
    fixed = len(encoder.tokens.prefix) + len(encoder.tokens.tail)
    message = refused(ConfigError, lambda: make(folder, layers=(1,), template=TURN, max_tokens=fixed))
    assert message == f"max_tokens: {fixed} leave no room for a prompt; the template alone has {fixed}"


# --- frozen ---


def test_frozen(encoder):
    encoder.train()
    assert not encoder.trainable
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.training_flops([3, 4]) == 0
    weight = torch.ones(32, requires_grad=True)
    (features(encoder, ["star"])[0][0] * weight).sum().backward()
    assert weight.grad is not None


def test_layers_behind_the_last_one_are_dropped(folder):
    encoder = make(folder, layers=(1, 0))
    assert len(encoder.model.layers) == 2
    assert (encoder.num_layers, encoder.width) == (2, 32)


def test_other_precision_computes_the_prefix_anew(folder, encoder):
    again = copy.deepcopy(encoder).double()
    (_, expected), (_, found) = features(encoder, TEXTS), features(again, TEXTS)
    assert found[0].dtype == torch.float64
    torch.testing.assert_close(torch.cat(found), torch.cat(expected).double(), rtol=1e-4, atol=1e-5)


def test_precision_of_the_folder_or_the_one_asked_for(folder, tmp_path):
    config = CausalLMConfig(layers=(1,), path=str(folder))
    CausalLMEncoder.fit(config, []).save(tmp_path)
    for dtype in (torch.bfloat16, torch.float32):
        encoder = CausalLMEncoder.from_folder(config, tmp_path, template=None, dtype=dtype)
        assert features(encoder, ["star"])[0][0].dtype == dtype
    half = {key: value.bfloat16() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(half, tmp_path / "text_encoder" / "model.safetensors", {"format": "pt"})
    change(tmp_path / "text_encoder" / "config.json", dtype="bfloat16")
    encoder = CausalLMEncoder.from_folder(config, tmp_path, template=None, dtype=None)
    assert features(encoder, ["star"])[0][0].dtype == torch.bfloat16


def test_captions_and_seed_change_nothing(folder, encoder):
    other = CausalLMEncoder.fit(encoder.config, ["a", "b"], seed=5)
    assert torch.equal(features(other, TEXTS)[1][0], features(encoder, TEXTS)[1][0])


# --- files ---


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_round_trip_through_a_model_folder(folder, encoder, tmp_path):
    encoder.save(tmp_path / "a")
    again = CausalLMEncoder.from_folder(encoder.config, tmp_path / "a", template=None, dtype=None)
    again.save(tmp_path / "b")
    assert again.tokenize(TEXTS) == encoder.tokenize(TEXTS)
    for found, expected in zip(features(again, TEXTS), features(encoder, TEXTS), strict=True):
        assert torch.equal(torch.cat(found), torch.cat(expected))
    written = {file.relative_to(tmp_path / "a"): file.read_bytes() for file in (tmp_path / "a").rglob("*.*")}
    assert {str(path) for path in written} >= {"text_encoder/model.safetensors", "tokenizer/tokenizer.json"}
    assert written == {file.relative_to(tmp_path / "b"): file.read_bytes() for file in (tmp_path / "b").rglob("*.*")}
    assert (tmp_path / "a/text_encoder/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_saving_into_its_own_folder(encoder, tmp_path):
    encoder.save(tmp_path)
    again = CausalLMEncoder.from_folder(encoder.config, tmp_path, template=None, dtype=None)
    before = (tmp_path / "text_encoder" / "model.safetensors").read_bytes()
    again.save(tmp_path)
    assert (tmp_path / "text_encoder" / "model.safetensors").read_bytes() == before


def test_training_from_a_model_folder(encoder, tmp_path):
    encoder.save(tmp_path)
    again = make(tmp_path, layers=(1, 3), template=TURN)
    assert torch.equal(features(again, ["star"])[0][0], features(encoder, ["star"])[0][0])


def test_shards(folder, whole, tmp_path):
    Qwen3Model.from_pretrained(folder).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    encoder = make(tmp_path / "sharded", layers=(3,))
    encoder.save(tmp_path / "model")
    again = CausalLMEncoder.from_folder(encoder.config, tmp_path / "model", template=None, dtype=None)
    (ids,) = again.tokenize(["star"])
    torch.testing.assert_close(features(again, ["star"])[0][0], by_hand(whole, ids, 3), rtol=1e-5, atol=1e-5)
    next((tmp_path / "sharded").glob("*.safetensors")).unlink()
    assert "sharded" in refused(ArtifactError, lambda: make(tmp_path / "sharded", layers=(3,)))


def test_source_that_went_away(copied, tmp_path):
    encoder = make(copied, layers=(1,))
    shutil.rmtree(copied)
    assert "is not there any more" in refused(ArtifactError, lambda: encoder.save(tmp_path / "model"))


def test_missing_tensor(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"], weights["norm.weight"]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    message = refused(ArtifactError, lambda: make(copied, layers=(1,)))
    assert message.endswith("do not fit its config: 'layers.1.mlp.up_proj.weight' is missing (and 1 more)")


def test_wrong_shape(copied):
    weights = load_file(copied / "model.safetensors")
    save_file(weights | {"norm.weight": torch.zeros(7)}, copied / "model.safetensors", {"format": "pt"})
    message = refused(ArtifactError, lambda: make(copied, layers=(1,)))
    assert message.endswith("'norm.weight' has shape (7,), not (32,)")


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights(copied, kept):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert f"{file} is damaged or truncated" in refused(ArtifactError, lambda: make(copied, layers=(1,)))


def test_pickles_are_never_read(copied):
    harm = copied / "harm"
    (copied / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt"):
        (copied / name).write_bytes(f"cos\nmkdir\n(V{harm}\ntR.".encode())
    refused(ArtifactError, lambda: make(copied, layers=(1,)))
    assert not harm.exists()


def test_code_in_the_folder_is_never_run(copied):
    (copied / "modeling.py").write_text(f"import pathlib; pathlib.Path({str(copied / 'harm')!r}).mkdir()")
    auto = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}
    change(copied / "config.json", model_type="nonesuch", auto_map=auto)
    refused(ArtifactError, lambda: make(copied, layers=(1,)))
    assert not (copied / "harm").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["{", "", "[]", "{}", None])
def test_damaged_json(copied, name, text):
    (copied / name).unlink()
    if text is not None:
        (copied / name).write_text(text)
    assert str(copied) in refused(ArtifactError, lambda: make(copied, layers=(1,)))


def test_no_such_layer(folder):
    message = refused(ConfigError, lambda: make(folder, layers=(1, 4)))
    assert message == f"layers: there is no layer 4; {folder} has 0 to 3"


def test_model_that_looks_ahead(tmp_path):
    config = BertConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=32, vocab_size=512
    )
    shake(BertModel(config)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    message = refused(ConfigError, lambda: make(tmp_path, layers=(1,)))
    assert message == f"{tmp_path} is no causal language model: its tokens see what follows them"


def test_model_of_two_halves(tmp_path):
    config = T5Config(num_layers=2, num_heads=4, d_model=32, d_kv=8, d_ff=32, vocab_size=512, decoder_start_token_id=0)
    shake(T5Model(config)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert "cannot be run as a causal language model" in refused(ConfigError, lambda: make(tmp_path, layers=(1,)))


def test_no_path():
    message = refused(ConfigError, lambda: CausalLMEncoder.fit(CausalLMConfig(layers=(1,)), []))
    assert message.startswith("path: say which pretrained text encoder")


@pytest.mark.parametrize("path", ["someone/some-model", "no such: thing/x/y"])
def test_path_that_leads_nowhere(path):
    assert f"path: {path} is no folder here" in refused(ConfigError, lambda: make(path, layers=(1,)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "layers"),
        ({"layers": []}, "at least 1"),
        ({"layers": [-1]}, "greater than or equal to 0"),
        ({"layers": [1, 2, 1]}, "names a layer twice"),
        ({"layers": [1], "template": "no place"}, "must contain {prompt} once"),
        ({"layers": [1], "template": "{prompt}{prompt}"}, "must contain {prompt} once"),
        ({"layers": [1], "max_tokens": 0}, "greater than 0"),
    ],
)
def test_wrong_settings(options, words):
    with pytest.raises(ValidationError, match=words):
        CausalLMConfig(**options)


def test_braces_in_a_template_are_plain_text(folder):
    encoder = make(folder, layers=(0,), template="{a}{prompt}{0}")
    assert encoder.tokens.backend.decode(encoder.tokens.prefix) == "{a}"
    assert encoder.tokens.backend.decode(encoder.tokens.tail) == "{0}"
