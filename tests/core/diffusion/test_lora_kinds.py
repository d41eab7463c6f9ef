"""DoRA and LoKr: what peft trains is read, drawn with, fused and written; each against the formula.

Suffixes: O output and I input channels of a linear, R rank.
"""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.diffusion.test_lora import QKV, assert_draws, diffusers_model, diffusers_output, refused, tiny, velocity
from lens_core.diffusion.weights import fuse_loras, load_lora, save_lora, set_loras, unfuse_loras, unload_loras
from lens_core.diffusion.weights.kronecker import kronecker_factors
from lens_core.errors import ConfigError

TARGETS = ("attn.img_qkv", "attn.to_out.0", "img_mlp.w1", "img_mlp.w2")
NAMES = [f"transformer_blocks.{block}.{target}" for block in (0, 1) for target in TARGETS]


def trained(config, module=None):
    """A module with adapters of peft's, none of whose numbers is zero."""
    torch.manual_seed(0)
    model = peft.get_peft_model(module or tiny(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "lokr_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def dora(**options):
    return peft.LoraConfig(r=3, lora_alpha=5, target_modules=list(TARGETS), use_dora=True, **options)


def lokr(**options):
    return peft.LoKrConfig(r=2, alpha=3, target_modules=list(TARGETS), **options)


def parts_of(model, name):
    """peft's numbers for one linear."""
    layer = model.base_model.model.get_submodule(name)
    return {
        part: getattr(layer, part)["default"] for part in layer.adapter_layer_names if "default" in getattr(layer, part)
    }


def dora_by_hand(theirs):
    """The weights that a DoRA makes, by its formula: rows of W + BA, brought to a length."""
    model = tiny()
    with torch.no_grad():
        for name in NAMES:
            parts = parts_of(theirs, name)
            weight_OI = model.get_submodule(name).weight
            summed_OI = weight_OI + 5 / 3 * (parts["lora_B"].weight @ parts["lora_A"].weight).double()
            weight_OI.copy_(
                summed_OI
                / summed_OI.norm(dim=1, keepdim=True)
                * parts["lora_magnitude_vector"].weight[:, None].double()
            )
    return model


def lokr_by_hand(theirs, scale):
    model = tiny()
    with torch.no_grad():
        for name in NAMES:
            parts = {part: tensor.double() for part, tensor in parts_of(theirs, name).items()}
            first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
            second = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
            model.get_submodule(name).weight += scale * torch.kron(first, second)
    return model


def test_a_dora_that_peft_wrote(tmp_path):
    theirs = trained(dora())
    theirs.save_pretrained(tmp_path)
    ours = tiny()
    assert sorted(load_lora(ours, tmp_path)) == sorted(NAMES)
    assert (velocity(ours) - velocity(tiny())).abs().max() > 1e-3
    assert_draws(ours, dora_by_hand(theirs), 1e-6)
    before = velocity(ours)
    fuse_loras(ours)
    torch.testing.assert_close(velocity(ours), before, rtol=1e-9, atol=1e-9)
    unfuse_loras(ours)
    torch.testing.assert_close(velocity(ours), before, rtol=1e-9, atol=1e-9)
    set_loras(ours, {})
    assert_draws(ours, tiny())
    set_loras(ours, {"default": 1})
    fuse_loras(ours)
    unload_loras(ours)
    torch.testing.assert_close(velocity(ours), before, rtol=1e-9, atol=1e-9)
    assert not any(parameter.is_meta for parameter in ours.parameters())


def test_a_dora_in_lycoris_words():
    theirs = trained(dora())
    keys = {}
    for name in NAMES:
        parts, stem = parts_of(theirs, name), f"lycoris_{name.replace('.', '_')}"
        keys[f"{stem}.lora_down.weight"] = parts["lora_A"].weight.detach()
        keys[f"{stem}.lora_up.weight"] = parts["lora_B"].weight.detach()
        keys[f"{stem}.alpha"] = torch.tensor(5.0)
        keys[f"{stem}.dora_scale"] = parts["lora_magnitude_vector"].weight.detach()[:, None]
    ours = tiny()
    load_lora(ours, keys)
    assert_draws(ours, dora_by_hand(theirs), 1e-6)


@pytest.mark.parametrize("rslora", [False, True])
def test_dora_round_trip(tmp_path, rslora):
    theirs = trained(dora(use_rslora=rslora))
    save_lora(theirs, tmp_path / "a.safetensors")
    ours, again = tiny(), tiny()
    load_lora(ours, tmp_path / "a.safetensors", name="mine")
    # peft's adapters are in float32 beside weights in float64
    torch.testing.assert_close(velocity(ours), velocity(theirs.base_model.model), rtol=1e-5, atol=1e-5)
    save_lora(ours, tmp_path / "b.safetensors", "mine")
    load_lora(again, tmp_path / "b.safetensors")
    assert torch.equal(velocity(again), velocity(ours))


def test_dora_to_diffusers(tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=["to_q", "img_mod.1"], use_dora=True)
    ours = trained(config, diffusers_model()).eval()
    expected = diffusers_output(ours)
    assert (expected - diffusers_output(diffusers_model())).abs().max() > 1e-3
    save_lora(ours, tmp_path / "ours.safetensors")
    again = diffusers_model()
    again.load_lora_adapter(str(tmp_path / "ours.safetensors"), prefix="transformer", use_safetensors=True)
    torch.testing.assert_close(diffusers_output(again), expected)


def test_a_dora_is_on_or_off(tmp_path):
    save_lora(trained(dora()), tmp_path / "a.safetensors")
    words = "'default' is a DoRA, which is on or off: its scale is 1, not 0.5"
    assert words in refused(tmp_path / "a.safetensors", ConfigError, scale=0.5)
    model = tiny()
    load_lora(model, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=words):
        set_loras(model, {"default": 0.5})


def test_a_dora_by_half(tmp_path):
    save_lora(trained(dora()), tmp_path / "a.safetensors")
    keys = load_file(tmp_path / "a.safetensors")
    del keys[f"transformer.{QKV}.lora_magnitude_vector"]
    assert refused(keys) == f"the LoRA is a DoRA, but has no magnitude for '{QKV}'"


@pytest.mark.parametrize("options", [{}, {"decompose_both": True}, {"decompose_factor": 4}, {"r": 64}], ids=str)
def test_a_lokr_that_peft_wrote(tmp_path, options):
    config = lokr(**{key: value for key, value in options.items() if key != "r"})
    config.r = options.get("r", config.r)
    theirs = trained(config)
    theirs.save_pretrained(tmp_path)
    ours = tiny()
    assert sorted(load_lora(ours, tmp_path, scale=0.5)) == sorted(NAMES)
    by_hand = lokr_by_hand(theirs, 0.5 * 3 / config.r)
    assert (velocity(by_hand) - velocity(tiny())).abs().max() > 1e-6
    assert_draws(ours, by_hand, 1e-6)
    fuse_loras(ours)
    assert_draws(ours, by_hand, 1e-6)


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
@pytest.mark.parametrize("options", [{}, {"decompose_both": True}], ids=str)
def test_lokr_as_it_is_trained_is_saved_fused_and_taken_off(tmp_path, options, prefix):
    theirs = trained(lokr(**options)).base_model.model
    before = velocity(theirs)
    save_lora(theirs, tmp_path / "a.safetensors", prefix=prefix)
    names = {key.rpartition(".")[2] for key in load_file(tmp_path / "a.safetensors")}
    assert {name[:7] for name in names} == {"lokr_w1", "lokr_w2"}
    ours = tiny()
    load_lora(ours, tmp_path / "a.safetensors")
    torch.testing.assert_close(velocity(ours), before, rtol=1e-5, atol=1e-5)
    fuse_loras(theirs)
    unload_loras(theirs)
    assert [name for name, _ in theirs.named_modules()] == [name for name, _ in tiny().named_modules()]
    torch.testing.assert_close(velocity(theirs), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "alpha", "scale"),
    [
        ({"lokr_w1": (8, 4), "lokr_w2": (12, 8)}, 7.0, 1.0),  # no factor shows a rank: alpha means nothing
        ({"lokr_w1": (8, 4), "lokr_w2_a": (12, 2), "lokr_w2_b": (2, 8)}, 7.0, 3.5),
        ({"lokr_w1_a": (4, 3), "lokr_w1_b": (3, 8), "lokr_w2": (24, 4)}, 7.0, 7 / 3),
        ({"lokr_w1_a": (4, 3), "lokr_w1_b": (3, 8), "lokr_w2_a": (24, 2), "lokr_w2_b": (2, 4)}, 7.0, 3.5),
        ({"lokr_w1": (8, 4), "lokr_w2_a": (12, 2), "lokr_w2_b": (2, 8)}, None, 1.0),
        ({"lokr_w1_a": (4, 9), "lokr_w1_b": (9, 8), "lokr_w2_a": (24, 7), "lokr_w2_b": (7, 4)}, 7.0, 1.0),
    ],
    ids=range(6),
)
def test_a_lokr_in_lycoris_words(shapes, alpha, scale):
    generator = torch.Generator().manual_seed(0)
    parts = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    second = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    keys = {f"diffusion_model.{QKV}.{name}": tensor for name, tensor in parts.items()}
    if alpha:
        keys[f"diffusion_model.{QKV}.alpha"] = torch.tensor(alpha)
    ours, by_hand = tiny(), tiny()
    load_lora(ours, keys)
    with torch.no_grad():
        by_hand.get_submodule(QKV).weight += scale * torch.kron(first, second)
    assert_draws(ours, by_hand, 1e-9)


def test_kronecker_factors_are_thin():
    """The rank is the product of the factors' ranks, a whole one counting by its shorter side."""
    down, up, rank = kronecker_factors(
        {"w1": torch.rand(2, 4), "w2_a": torch.rand(8, 3), "w2_b": torch.rand(3, 5)}, (16, 20)
    )
    assert (down.shape, up.shape, rank) == ((6, 20), (16, 6), 3)
    # A small file may claim ranks whose product fits into no memory.
    many = {"w1_a": torch.rand(1, 10**6), "w1_b": torch.rand(10**6, 1), "w2_a": torch.rand(16, 10**5)}
    down, up, rank = kronecker_factors(many | {"w2_b": torch.rand(10**5, 20)}, (16, 20))
    assert (down.shape, up.shape, rank) == ((16, 20), (16, 16), 10**5)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"lokr_w1": (8, 4)}, "needs either lokr_w2, or lokr_w2_a and lokr_w2_b"),
        ({"lokr_w1": (8, 4), "lokr_w2_a": (12, 8)}, "needs either lokr_w2, or"),
        (
            {"lokr_w1": (8, 4), "lokr_w2": (12, 8), "lokr_w2_a": (12, 2), "lokr_w2_b": (2, 8)},
            "needs either lokr_w2, or",
        ),
        ({"lokr_w1": (8, 4), "lokr_w2": (12, 7)}, "makes a matrix of shape (96, 28), not (96, 32)"),
        ({"lokr_w1": (8, 4, 1), "lokr_w2": (12, 8)}, "has a lokr_w1 of shape (8, 4, 1), which is no matrix"),
        (
            {"lokr_w1": (8, 4), "lokr_w2_a": (12, 2), "lokr_w2_b": (3, 8)},
            "has a lokr_w2_a of shape (12, 2) to a lokr_w2_b",
        ),
    ],
    ids=range(6),
)
def test_a_lokr_that_fits_nowhere(tmp_path, shapes, words):
    save_file({f"{QKV}.{name}": torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "a.safetensors")
    message = refused(tmp_path / "a.safetensors")
    assert message.startswith(f"{tmp_path}/a.safetensors: the LoKr of '{QKV}' ")
    assert words in message


def test_a_lokr_with_patterns(tmp_path):
    """Ranks and alphas of single linears, as peft's config gives them."""
    theirs = trained(lokr(rank_pattern={"img_qkv": 4}, alpha_pattern={"img_qkv": 10}))
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"] == {"img_qkv": 4}
    ours = tiny()
    load_lora(ours, tmp_path)
    torch.testing.assert_close(velocity(ours), velocity(theirs.base_model.model), rtol=1e-5, atol=1e-5)
