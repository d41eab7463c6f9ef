"""LoRAs: a loaded one equals the weights merged by hand, whatever its trainer calls things, and a misfit is told.

Suffixes: O output and I input channels of a linear, R rank.
"""

from __future__ import annotations

import json
import re

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from core.diffusion.packs import pack, random_lens, random_samples
from lens_core.diffusion.weights import (
    fuse_loras,
    load_lora,
    load_weights,
    save_lora,
    save_weights,
    set_loras,
    unfuse_loras,
    unload_loras,
)
from lens_core.errors import ArtifactError, ConfigError

BLOCK = "transformer_blocks.0"
QKV = f"{BLOCK}.attn.img_qkv"
TARGETS = {
    # By name in the released model: rank and alpha.
    f"{BLOCK}.attn.img_qkv": (2, 2.0),
    f"{BLOCK}.attn.txt_qkv": (2, 1.0),
    f"{BLOCK}.attn.to_out.0": (3, 12.0),
    f"{BLOCK}.attn.to_add_out": (2, 2.0),
    f"{BLOCK}.img_mlp.w1": (1, 0.5),
    f"{BLOCK}.img_mlp.w2": (4, 4.0),
    f"{BLOCK}.txt_mlp.w3": (2, 2.0),
    f"{BLOCK}.img_mod.1": (2, 4.0),
    "transformer_blocks.1.txt_mod.1": (2, 2.0),
    "transformer_blocks.1.attn.img_qkv": (5, 2.5),
    "norm_out.linear": (2, 2.0),
    "img_in": (2, 2.0),
}
PREFIXES = [
    "",
    "transformer.",
    "diffusion_model.",
    "base_model.model.",
    "base_model.model.transformer.",
    "model.diffusion_model.",
]


def tiny(seed=0):
    """The same model each time, whatever random numbers were drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return random_lens(seed=seed)


def factors(targets=TARGETS, seed=0, dtype=torch.float64):
    """Random A, B and alpha per target."""
    model, generator = tiny(), torch.Generator().manual_seed(seed)
    made = {}
    for name, (rank, alpha) in targets.items():
        rows, columns = model.get_submodule(name).weight.shape
        down_RI = torch.randn(rank, columns, generator=generator, dtype=torch.float64).to(dtype) * 0.2
        up_OR = torch.randn(rows, rank, generator=generator, dtype=torch.float64).to(dtype) * 0.2
        made[name] = (down_RI, up_OR, alpha)
    return made


def peft_keys(made, prefix="", adapter="", alpha=True):
    keys = {}
    for name, (down_RI, up_OR, a) in made.items():
        keys |= {f"{prefix}{name}.lora_A{adapter}.weight": down_RI, f"{prefix}{name}.lora_B{adapter}.weight": up_OR}
        if alpha:
            keys[f"{prefix}{name}.alpha"] = torch.tensor(a)
    return keys


def kohya_keys(made, prefix="", *, flat=False):
    keys = {}
    for name, (down_RI, up_OR, alpha) in made.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        keys |= {
            f"{stem}.lora_down.weight": down_RI,
            f"{stem}.lora_up.weight": up_OR,
            f"{stem}.alpha": torch.tensor(alpha),
        }
    return keys


def merged(made, scale=1.0, *, onto=None, alpha=True):
    """A model to whose weights the LoRA was added by hand."""
    model = onto or tiny()
    with torch.no_grad():
        for name, (down_RI, up_OR, a) in made.items():
            ratio = a / len(down_RI) if alpha else 1.0
            model.get_submodule(name).weight += scale * ratio * up_OR @ down_RI
    return model


def velocity(model):
    with torch.no_grad():
        return model.forward_ragged(pack(random_samples()))


def assert_draws(model, other, tolerance=1e-12):
    torch.testing.assert_close(velocity(model), velocity(other), rtol=tolerance, atol=tolerance)


def assert_untouched(model):
    fresh = tiny()
    assert [name for name, _ in model.named_modules()] == [name for name, _ in fresh.named_modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())


def refused(source, error=ArtifactError, **options):
    """The one line with which a LoRA is refused; the model is as it was."""
    model = tiny()
    with pytest.raises(error) as caught:
        load_lora(model, source, **options)
    assert_untouched(model)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


def test_the_lora_shows():
    """Otherwise the tests below would compare nothing."""
    for name in TARGETS:
        changed = velocity(merged(factors({name: TARGETS[name]})))
        assert (changed - velocity(tiny())).abs().max() > 1e-5, name


@pytest.mark.parametrize("scale", [1.0, 0.3, -1, 0])
@pytest.mark.parametrize(
    "keys",
    [
        *(lambda made, p=prefix: peft_keys(made, p) for prefix in PREFIXES),
        *(lambda made, p=prefix: kohya_keys(made, p) for prefix in PREFIXES),
        *(
            lambda made, p=prefix: kohya_keys(made, p, flat=True)
            for prefix in ("lora_unet_", "lora_transformer_", "lycoris_")
        ),
        lambda made: peft_keys(made, adapter=".default"),
        lambda made: {key.replace(".lora_", ".lora."): tensor for key, tensor in kohya_keys(made).items()},
        lambda made: {key.replace(".lora_", "_lora."): tensor for key, tensor in kohya_keys(made).items()},
    ],
    ids=[
        *(f"peft {prefix}" for prefix in PREFIXES),
        *(f"kohya {prefix}" for prefix in PREFIXES),
        *(f"flat {prefix}" for prefix in ("lora_unet_", "lora_transformer_", "lycoris_")),
        "peft in memory",
        "lora.down",
        "_lora.down",
    ],
)
def test_equals_the_weights_merged_by_hand(tmp_path, keys, scale):
    made = factors()
    save_file(keys(made), tmp_path / "lora.safetensors")
    model = tiny()
    changed = load_lora(model, tmp_path / "lora.safetensors", scale=scale)
    assert sorted(changed) == sorted(TARGETS)
    assert_draws(model, merged(made, scale))


def test_every_linear_can_be_a_target():
    targets = {name: (2, 1.0) for name, part in tiny().named_modules() if isinstance(part, nn.Linear)}
    model, made = tiny(), factors(targets)
    assert len(load_lora(model, peft_keys(made))) == len(targets)
    assert_draws(model, merged(made))


def test_without_alpha_it_is_the_rank():
    model, made = tiny(), factors()
    load_lora(model, peft_keys(made, alpha=False))
    assert_draws(model, merged(made, alpha=False))


@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_that_peft_wrote(tmp_path, rslora):
    """Peft's own model, with ranks and alphas per module, saved by peft: same result here."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["img_qkv", "to_out.0", "img_mod.1", "w2"],
        rank_pattern={"to_out.0": 2, "^transformer_blocks.1.img_mlp.w2": 3},
        alpha_pattern={"img_mod.1": 1, r"transformer_blocks\.1\.attn\.img_qkv": 5},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(tiny(), config)
    theirs.save_pretrained(tmp_path)
    ours = tiny()
    load_lora(ours, tmp_path)
    assert (velocity(ours) - velocity(tiny())).abs().max() > 1e-3
    # Peft keeps the factors in float32 beside weights in float64.
    torch.testing.assert_close(velocity(ours), velocity(theirs.base_model.model), rtol=1e-5, atol=1e-5)
    by_file = tiny()
    load_lora(by_file, str(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(velocity(by_file), velocity(ours))


def diffusers_model(seed=0):
    """A small transformer of diffusers, of another architecture: LoRAs go on any module."""
    from diffusers import QwenImageTransformer2DModel

    torch.manual_seed(seed)
    return QwenImageTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def diffusers_output(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 6, 4, generator=generator),
            encoder_hidden_states=torch.randn(1, 3, 8, generator=generator),
            encoder_hidden_states_mask=torch.ones(1, 3, dtype=torch.bool),
            timestep=torch.tensor([0.5]),
            img_shapes=[[(1, 2, 3)]],
            return_dict=False,
        )[0]


def test_to_and_from_diffusers(tmp_path):
    """What diffusers saves loads here; what is saved here diffusers loads, with alphas and mixed ranks."""
    theirs = diffusers_model()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=10,
        target_modules=["to_q", "to_out.0", "img_mod.1"],
        rank_pattern={"to_q": 2},
        alpha_pattern={"img_mod.1": 3},
        init_lora_weights=False,
    )
    theirs.add_adapter(config)
    theirs.save_lora_adapter(tmp_path / "theirs")
    ours = diffusers_model()
    load_lora(ours, tmp_path / "theirs")
    assert (diffusers_output(ours) - diffusers_output(diffusers_model())).abs().max() > 1e-2
    torch.testing.assert_close(diffusers_output(ours), diffusers_output(theirs))

    save_lora(ours, tmp_path / "ours.safetensors")
    again = diffusers_model()
    again.load_lora_adapter(str(tmp_path / "ours.safetensors"), prefix="transformer", use_safetensors=True)
    torch.testing.assert_close(diffusers_output(again), diffusers_output(theirs))

    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    fresh = diffusers_model()
    fresh.load_lora_adapter(
        load_file(tmp_path / "ours.safetensors"),
        prefix="transformer",
        metadata=metadata,
    )
    torch.testing.assert_close(diffusers_output(fresh), diffusers_output(theirs))


def test_metadata_of_a_pipeline_of_diffusers(tmp_path):
    made = factors()
    alphas = {name: alpha for name, (_, _, alpha) in made.items()}
    told = {"transformer.lora_alpha": 7.0, "transformer.alpha_pattern": alphas, "transformer.r": 2}
    save_file(
        peft_keys(made, "transformer.", alpha=False),
        tmp_path / "a.safetensors",
        {"lora_adapter_metadata": json.dumps(told)},
    )
    model = tiny()
    load_lora(model, tmp_path / "a.safetensors")
    assert_draws(model, merged(made))


def test_two_at_once_add_up():
    first, second = factors(), factors(dict(list(TARGETS.items())[:4]) | {"proj_out": (1, 3.0)}, seed=1)
    model = tiny()
    load_lora(model, peft_keys(first), name="first", scale=0.5)
    load_lora(model, kohya_keys(second), name="second", scale=2)
    assert_draws(model, merged(second, 2, onto=merged(first, 0.5)))
    set_loras(model, {"second": 1.5, "first": -1})
    assert_draws(model, merged(second, 1.5, onto=merged(first, -1)))
    set_loras(model, {"second": 0.1})
    assert_draws(model, merged(second, 0.1))
    load_lora(model, peft_keys(first), name="third")  # joins those that are on
    assert_draws(model, merged(second, 0.1, onto=merged(first)))
    set_loras(model, {})
    assert_draws(model, tiny())


def test_fused_and_unfused():
    first, second = factors(), factors(seed=1)
    model = tiny()
    load_lora(model, peft_keys(first), name="first", scale=0.5)
    load_lora(model, peft_keys(second), name="second")
    both = merged(second, onto=merged(first, 0.5))
    for _ in range(2):  # twice is as once
        fuse_loras(model)
    assert_draws(model, both)
    layer = model.get_submodule(QKV)
    torch.testing.assert_close(layer.base_layer.weight, both.get_submodule(QKV).weight, rtol=0, atol=1e-12)
    for _ in range(2):
        unfuse_loras(model)
    torch.testing.assert_close(layer.base_layer.weight, tiny().get_submodule(QKV).weight, rtol=0, atol=1e-12)
    assert_draws(model, both)
    set_loras(model, {"second": 2.0})
    fuse_loras(model)
    assert_draws(model, merged(second, 2.0))


def test_while_fused_nothing_else_is_done():
    model = tiny()
    load_lora(model, peft_keys(factors()))
    fuse_loras(model)
    for change in (
        lambda: load_lora(model, peft_keys(factors()), name="b"),
        lambda: set_loras(model, {"default": 0.5}),
    ):
        with pytest.raises(ConfigError, match="unfuse_loras first"):
            change()
    assert_draws(model, merged(factors()))


def test_unloaded():
    model = tiny()
    parameters = dict(model.named_parameters())
    model.img_in.weight.requires_grad_(False)
    load_lora(model, peft_keys(factors()))
    load_lora(model, peft_keys(factors(seed=1)), name="b")
    unload_loras(model)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["img_in.weight"]
    model.img_in.weight.requires_grad_(True)
    assert_untouched(model)
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert not hasattr(model, "peft_config")
    unload_loras(model)
    load_lora(model, peft_keys(factors()))
    assert_draws(model, merged(factors()))


def test_a_fused_model_can_be_saved(tmp_path):
    model = tiny()
    load_lora(model, peft_keys(factors()))
    fuse_loras(model)
    unload_loras(model)
    save_weights(model, tmp_path)
    again = tiny(seed=3)
    load_weights(again, tmp_path, dtype=None)
    assert_draws(again, merged(factors()))


def test_loading_changes_nothing_else():
    """No gradient is switched on or off, and no random number is drawn."""
    model = tiny()
    model.img_in.weight.requires_grad_(False)
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    load_lora(model, peft_keys(factors()))
    assert torch.equal(torch.rand(()), expected)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {name.replace(".base_layer", "") for name in trained}
    assert own == {name for name, _ in tiny().named_parameters()} - {"img_in.weight"}
    assert model.config == tiny().config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_takes_the_models_dtype(dtype):
    model = tiny().to(dtype)
    load_lora(model, peft_keys(factors(dtype=torch.float16)))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_gradients_pass_through():
    """A model with a LoRA can still be differentiated with respect to its own weights."""
    model = tiny()
    load_lora(model, peft_keys(factors()))
    model.forward_ragged(pack(random_samples())).square().mean().backward()
    assert model.get_submodule(QKV).base_layer.weight.grad is not None
    assert model.get_submodule(QKV).lora_A["default"].weight.grad is None


@pytest.mark.parametrize("options", [{}, {"prefix": "diffusion_model."}])
def test_round_trip(tmp_path, options):
    model = tiny()
    load_lora(model, peft_keys(factors()), name="mine", scale=0.25)
    save_lora(model, tmp_path / "new" / "mine.safetensors", "mine", **options)
    again = tiny()
    changed = load_lora(again, tmp_path / "new" / "mine.safetensors")
    assert sorted(changed) == sorted(TARGETS)
    assert_draws(again, merged(factors()))
    weights = load_file(tmp_path / "new" / "mine.safetensors")
    prefix = options.get("prefix", "transformer.")
    assert weights.keys() == {f"{prefix}{name}.lora_{part}.weight" for name in TARGETS for part in "AB"}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize("rslora", [False, True])
def test_saves_what_a_trainer_made_with_peft(tmp_path, rslora):
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["img_qkv"], use_rslora=rslora, init_lora_weights=False)
    trained = peft.get_peft_model(tiny(), config)
    save_lora(trained, tmp_path / "a.safetensors")
    model = tiny()
    load_lora(model, tmp_path / "a.safetensors")
    torch.testing.assert_close(velocity(model), velocity(trained.base_model.model), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_saved(tmp_path):
    model = tiny()
    with pytest.raises(ConfigError, match="there is no LoRA 'default': none is loaded"):
        save_lora(model, tmp_path / "a.safetensors")
    load_lora(model, peft_keys(factors()), name="mine")
    with pytest.raises(ConfigError, match="there is no LoRA 'default': there are 'mine'"):
        save_lora(model, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"written as a .safetensors file"):
        save_lora(model, tmp_path / "a.bin", "mine")
    biased = peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["img_qkv"], lora_bias=True))
    with pytest.raises(ConfigError, match="no plain one"):
        save_lora(biased, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_nothing_matched():
    made = {name.replace("img_qkv", "to_q"): value for name, value in factors({QKV: (2, 2.0)}).items()}
    message = refused(peft_keys(made, alpha=False))
    assert message == (
        "the LoRA fits nothing in this model: it has 'transformer_blocks.0.attn.to_q.lora_A.weight', "
        "'transformer_blocks.0.attn.to_q.lora_B.weight'; the model has 'img_in', 'txt_in', "
        "'time_text_embed.timestep_embedder.linear_1' (and 27 more)"
    )


def test_only_some_matched(tmp_path):
    extra = {
        "transformer_blocks.7.attn.img_qkv.lora_A.weight": torch.zeros(1, 32),
        "lora_unet_x.alpha": torch.zeros(()),
    }
    save_file(peft_keys(factors()) | extra, tmp_path / "lora.safetensors")
    assert refused(tmp_path / "lora.safetensors") == (
        f"{tmp_path}/lora.safetensors does not fit this model: nothing there is called "
        "'lora_unet_x.alpha', 'transformer_blocks.7.attn.img_qkv.lora_A.weight'"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda k: k.pop(f"{QKV}.lora_B.weight"), f"'{QKV}' has no lora_B (or lora_up) to '{QKV}.lora_A.weight'"),
        (lambda k: k.pop(f"{QKV}.lora_A.weight"), f"'{QKV}' has no lora_A (or lora_down) to '{QKV}.lora_B.weight'"),
        (lambda k: k.update({f"{QKV}.lora_A.weight": torch.zeros(2, 31)}), "has shape (2, 31), not (rank, 32)"),
        (lambda k: k.update({f"{QKV}.lora_A.weight": torch.zeros(2, 32, 1, 1)}), "has shape (2, 32, 1, 1), not (rank,"),
        (lambda k: k.update({f"{QKV}.lora_A.weight": torch.zeros(0, 32)}), "has shape (0, 32), not (rank, 32)"),
        (lambda k: k.update({f"{QKV}.lora_A.weight": torch.zeros(3, 32)}), "has shape (96, 2), not (96, 3)"),
        (lambda k: k.update({f"{QKV}.lora_B.weight": torch.zeros(32, 2)}), "has shape (32, 2), not (96, 2)"),
        (lambda k: k.update({f"{QKV}.alpha": torch.zeros(2)}), f"'{QKV}.alpha' is no single number"),
        (lambda k: k.update({f"{QKV}.alpha": torch.tensor(torch.inf)}), "alpha' has values that are not finite"),
        (lambda k: k.update({f"{QKV}.lora_A.weight": torch.full((2, 32), torch.nan)}), "values that are not finite"),
        (lambda k: k.update({f"{QKV}.lora_A.weight": torch.zeros(2, 32, dtype=torch.int8)}), "no quantised LoRA"),
        (lambda k: k.update({f"transformer.{QKV}.alpha": torch.tensor(1.0)}), f"are the same factor of '{QKV}'"),
        (lambda k: k.update({f"{BLOCK}.attn.norm_q.lora_A.weight": torch.zeros(2, 16)}), "nothing there is called"),
        (lambda k: k.update({f"{QKV}.lora_magnitude_vector.weight": torch.zeros(95)}), "has shape (95,), not (96,)"),
        (lambda k: k.update({f"{QKV}.dora_scale": torch.zeros(1, 32)}), "has shape (1, 32), not (96,)"),
        (lambda k: k.update({f"{QKV}.lokr_w1": torch.zeros(2, 2)}), "is no part of a LoKr"),
        (lambda k: k.update({f"{QKV}.lokr_t2": torch.zeros(2, 2)}), "holds a convolution's LoKr"),
        (lambda k: k.update({f"{QKV}.hada_w1_a": torch.zeros(2, 2)}), "holds LoHa"),
        (lambda k: k.update({f"{QKV}.diff_b": torch.zeros(96)}), "holds whole differences of weights"),
        (lambda k: k.update({f"{QKV}.lora_B.bias": torch.zeros(96)}), "holds biases of its own"),
        (lambda k: k.update({f"{QKV}.weight": torch.zeros(96, 32)}), f"nothing there is called '{QKV}.weight'"),
        (lambda k: k.update({"text_encoder.q.lora_A.weight": torch.zeros(2, 2)}), "is a LoRA of a text encoder too"),
    ],
)  # fmt: skip
def test_what_does_not_fit(tmp_path, change, words):
    keys = peft_keys(factors({QKV: (2, 2.0)}))
    change(keys)
    save_file(keys, tmp_path / "lora.safetensors")
    message = refused(tmp_path / "lora.safetensors")
    assert message.startswith(f"{tmp_path}/lora.safetensors")
    assert words in message


@pytest.mark.parametrize(
    "key",
    [
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "text_encoder_2.encoder.block.0.q.lora_A.weight",
        "text_encoders.gpt_oss.model.layers.0.self_attn.q_proj.lora_A.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
    ],
)
def test_a_text_encoders_lora(key):
    assert "is a LoRA of a text encoder alone" in refused({key: torch.zeros(1)})


def test_no_lora_at_all(tmp_path):
    assert "is empty" in refused({})
    assert "holds no LoRA: it has 'img_in.bias', 'img_in.weight'" in refused(
        {"img_in.bias": torch.zeros(32), "img_in.weight": torch.zeros(32, 16)}
    )


def test_ambiguous_underscores():
    """Two linears that kohya's names cannot tell apart: neither is guessed."""
    model = nn.Module()
    model.a = nn.Module()
    model.a.b_c, model.a_b = nn.Linear(2, 2), nn.Module()
    model.a_b.c = nn.Linear(2, 2)
    keys = {"lora_unet_a_b_c.lora_down.weight": torch.zeros(1, 2), "lora_unet_a_b_c.lora_up.weight": torch.zeros(2, 1)}
    with pytest.raises(ArtifactError, match="fits nothing in this model"):
        load_lora(model, keys)


def test_names_are_taken_whole():
    """A linear whose name ends another's, or matches it as a pattern, is not meant along with it."""
    model = nn.ModuleDict({"c": nn.Linear(2, 2), "b": nn.ModuleDict({"c": nn.Linear(2, 2)}), "bxc": nn.Linear(2, 2)})
    for name in ("c", "b.c", "bxc"):
        keys = {f"{name}.lora_A.weight": torch.ones(1, 2), f"{name}.lora_B.weight": torch.ones(2, 1)}
        assert load_lora(model, keys, name="x") == [name]
        assert [key for key, part in model.named_modules() if hasattr(part, "lora_A")] == [name]
        unload_loras(model)


def test_files_that_are_none(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "lora.pt")
    assert "only .safetensors files are read" in refused(tmp_path / "lora.pt", ConfigError)
    (tmp_path / "lora.pt").rename(tmp_path / "lora.safetensors")
    assert "it looks like a pickle" in refused(tmp_path / "lora.safetensors")
    assert "cannot be read: No such file" in refused(tmp_path / "none.safetensors")
    (tmp_path / "empty").mkdir()
    assert "has no .safetensors file" in refused(tmp_path / "empty", ConfigError)
    for name in ("a", "b"):
        save_file(peft_keys(factors()), tmp_path / "empty" / f"{name}.safetensors")
    assert "has 'a.safetensors', 'b.safetensors': say which" in refused(tmp_path / "empty", ConfigError)
    save_file(peft_keys(factors()), tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    assert "is damaged or truncated: it ends at byte" in refused(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        ({"peft_type": "LOHA"}, "says 'LOHA', and only LORA and LOKR are read"),
        ({"peft_type": "LOKR", "r": 0}, "'r' and 'rank_pattern' are no ranks"),
        ({"use_dora": True}, "is a DoRA, but has no magnitude for"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changed the model's own weights"),
        ({"lora_alpha": "8"}, "are no numbers"),
        ({"lora_alpha": True}, "are no numbers"),
        ({"alpha_pattern": [3]}, "are no numbers"),
        ({"alpha_pattern": {"img_qkv": None}}, "are no numbers"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "the 'alpha_pattern' '(a+)+b' is no name of a module"),
    ],
    ids=range(13),
)
@pytest.mark.parametrize("where", ["folder", "metadata"])
def test_a_config_that_is_none(tmp_path, config, words, where):
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    keys = peft_keys(factors())
    if where == "folder":
        (tmp_path / "adapter_config.json").write_bytes(text)
        save_file(keys, tmp_path / "adapter_model.safetensors")
    else:
        metadata = {"lora_adapter_metadata": text.decode(errors="replace")}
        save_file(keys, tmp_path / "lora.safetensors", metadata)
    message = refused(tmp_path)
    assert words in message
    assert ("adapter_config.json" in message) == (where == "folder" and "magnitude" not in message)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "-a", "a/b"])
def test_names_that_are_none(name):
    assert f"{name!r} is no name for a LoRA" in refused(peft_keys(factors()), ConfigError, name=name)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", None, True])
def test_scales_that_are_none(scale):
    words = re.escape(f"the scale {scale!r} of the LoRA 'default' is no finite number")
    assert re.search(words, refused(peft_keys(factors()), ConfigError, scale=scale))
    model = tiny()
    load_lora(model, peft_keys(factors()))
    with pytest.raises(ConfigError, match=words):
        set_loras(model, {"default": scale})


def test_names_that_are_taken_or_unknown():
    model = tiny()
    load_lora(model, peft_keys(factors()))
    with pytest.raises(ConfigError, match="there is a LoRA 'default' already"):
        load_lora(model, peft_keys(factors()))
    with pytest.raises(ConfigError, match="there is no LoRA 'other': there are 'default'"):
        set_loras(model, {"default": 0.5, "other": 1.0})
    assert_draws(model, merged(factors()))


def test_a_misfit_leaves_the_loras_that_are_there():
    model = tiny()
    load_lora(model, peft_keys(factors()), scale=0.5)
    with pytest.raises(ArtifactError):
        load_lora(model, {"x.lora_A.weight": torch.zeros(1, 2)}, name="b")
    assert_draws(model, merged(factors(), 0.5))


@pytest.mark.parametrize("where", ["_move_adapter_to_device_of_base_layer", "set_scale"])  # when injected, when filled
@pytest.mark.parametrize("others", [False, True])
def test_what_fails_half_way_leaves_no_trace(monkeypatch, where, others):
    """Out of memory, most of the time; the name is free again, and the same file can be read later."""
    model = tiny()
    if others:
        load_lora(model, peft_keys(factors({QKV: (2, 2.0)})), name="first", scale=0.5)
        load_lora(model, peft_keys(factors({QKV: (3, 2.0)}, seed=1)), name="second")
        set_loras(model, {"first": 0.5})
    before, parts = velocity(model), [name for name, _ in model.named_modules()]
    layer_class, calls = peft.tuners.lora.LoraLayer, iter(range(1000))
    real = getattr(layer_class, where)

    def failing(*args):
        if next(calls) >= 9:
            raise torch.OutOfMemoryError("too large")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(layer_class, where, failing)
        with pytest.raises(torch.OutOfMemoryError):
            load_lora(model, peft_keys(factors(seed=2)), name="third")
    assert [name for name, _ in model.named_modules()] == parts
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" not in name)
    assert torch.equal(velocity(model), before)
    set_loras(model, {"first": 0.5} if others else {})
    load_lora(model, peft_keys(factors(seed=2)), name="third")
    onto = merged(factors({QKV: (2, 2.0)}), 0.5) if others else None
    assert_draws(model, merged(factors(seed=2), onto=onto))
