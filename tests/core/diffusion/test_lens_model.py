"""The Lens denoiser: key for key and number for number the released architecture, over ragged batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from core.diffusion.packs import SHAPES, TINY, Sample, pack, random_lens, random_samples
from lens_core.diffusion import LensTransformer2DModel
from lens_core.diffusion.models.lens.config import LensModelConfig
from lens_core.diffusion.models.lens.model import build, timestep_embedding
from lens_core.errors import ArtifactError

CASES = (0, 1, 2)  # the last has no text
DIM = 32  # of the tiny model


def released_shapes(*, dim, hidden, head, blocks, channels, out, width, layers):
    """The released layout, written out."""

    def linear(name, rows, columns):
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    shapes = {
        **linear("img_in", dim, channels),
        **{f"txt_norm.{layer}.weight": (width,) for layer in range(layers)},
        **linear("txt_in", dim, layers * width),
        **linear("time_text_embed.timestep_embedder.linear_1", dim, 256),
        **linear("time_text_embed.timestep_embedder.linear_2", dim, dim),
        **linear("norm_out.linear", 2 * dim, dim),
        **linear("proj_out", out, dim),
    }
    for number in range(blocks):
        block = {f"attn.{name}.weight": (head,) for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")}
        block |= linear("attn.to_out.0", dim, dim) | linear("attn.to_add_out", dim, dim)
        for stream in ("img", "txt"):
            block |= linear(f"attn.{stream}_qkv", 3 * dim, dim) | linear(f"{stream}_mod.1", 6 * dim, dim)
            block |= {f"{stream}_norm1.weight": (dim,), f"{stream}_norm2.weight": (dim,)}
            block |= {f"{stream}_mlp.w1.weight": (hidden, dim), f"{stream}_mlp.w3.weight": (hidden, dim)}
            block |= {f"{stream}_mlp.w2.weight": (dim, hidden)}
        shapes |= {f"transformer_blocks.{number}.{name}": shape for name, shape in block.items()}
    return shapes


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def golden_inputs(cases, number):
    """Arguments of the padded call."""
    prefix = f"dit.{number}"
    h, w = cases[f"{prefix}.grid"].tolist()
    return {
        "hidden_states": cases[f"{prefix}.hidden_states"],
        "encoder_hidden_states": [cases[f"{prefix}.features.{layer}"] for layer in range(4)],
        "encoder_hidden_states_mask": cases[f"{prefix}.mask"],
        "timestep": cases[f"{prefix}.timestep"],
        "img_shapes": [(1, h, w)],
    }


def golden_samples(cases, number):
    """The same without padding, and what the reference made of it."""
    inputs = golden_inputs(cases, number)
    grid = inputs["img_shapes"][0][1:]
    lengths = inputs["encoder_hidden_states_mask"].sum(-1).tolist()
    return [
        Sample(
            grid=grid,
            image=inputs["hidden_states"][row],
            text=tuple(layer[row, :length] for layer in inputs["encoder_hidden_states"]),
            timestep=inputs["timestep"][row],
        )
        for row, length in enumerate(lengths)
    ], list(cases[f"dit.{number}.output"])


@pytest.fixture
def samples():
    return random_samples()


def test_full_size_has_the_released_layout():
    with torch.device("meta"):
        model = LensTransformer2DModel()
    assert shapes_of(model) == released_shapes(
        dim=1536, hidden=4096, head=64, blocks=48, channels=128, out=128, width=2880, layers=4
    )
    assert len(model.state_dict()) == 1264
    assert num_parameters(model) == 4_104_225_152


def test_preset_of_the_release_is_the_release():
    with torch.device("meta"):
        preset = build(LensModelConfig(preset="3.8b"), in_channels=128, enc_hidden_dim=2880, num_text_layers=4)
        model = LensTransformer2DModel()
    assert shapes_of(preset) == shapes_of(model)
    # Which layers the features come from is the text encoder's business, and all that differs.
    assert preset.config | {"selected_layer_index": [5, 11, 17, 23]} == model.config


def test_tiny_model_has_the_released_layout(golden_model):
    # int(32 / 3 · 8) = 85: the MLP's width is rounded down once, at the end.
    assert shapes_of(golden_model) == released_shapes(
        dim=32, hidden=85, head=16, blocks=2, channels=16, out=16, width=24, layers=4
    )
    assert len(golden_model.state_dict()) == 68
    assert num_parameters(golden_model) == 90_928


def test_config_is_what_it_was_built_from(golden_config):
    assert LensTransformer2DModel(**golden_config).config == golden_config


@pytest.mark.parametrize("number", CASES)
def test_padded_call_equals_the_reference(golden_model, cases, number):
    with torch.no_grad():
        output = golden_model(**golden_inputs(cases, number))
    torch.testing.assert_close(output, cases[f"dit.{number}.output"], rtol=0, atol=1e-5)


def test_ragged_call_equals_the_reference(golden_model, cases):
    """All cases at once: three grids, five text lengths, none padded."""
    samples, outputs = [], []
    for number in CASES:
        more_samples, more_outputs = golden_samples(cases, number)
        samples += more_samples
        outputs += more_outputs
    with torch.no_grad():
        output = golden_model.forward_ragged(pack(samples))
    torch.testing.assert_close(output, torch.cat(outputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_pack_equals_each_alone(golden_model, cases, dtype, tolerance):
    model = golden_model.to(dtype)
    samples = [one.to(dtype) for number in CASES for one in golden_samples(cases, number)[0]] + random_samples(
        dtype=dtype
    )
    with torch.no_grad():
        together = model.forward_ragged(pack(samples)).split([len(one.image) for one in samples])
        for output, one in zip(together, samples, strict=True):
            alone = model.forward_ragged(pack([one]))
            assert (output - alone).abs().max() <= tolerance * alone.abs().max()


def test_order_in_the_pack_changes_nothing(golden_model, samples):
    model = golden_model.double()
    order = [4, 0, 5, 2, 1, 3]
    lengths = [len(one.image) for one in samples]
    with torch.no_grad():
        output = model.forward_ragged(pack(samples)).split(lengths)
        moved = model.forward_ragged(pack([samples[i] for i in order])).split([lengths[i] for i in order])
    for place, i in enumerate(order):
        torch.testing.assert_close(moved[place], output[i], rtol=0, atol=1e-10)


def test_padded_text_is_never_looked_at(golden_model, cases):
    inputs = golden_inputs(cases, 0)
    mask = inputs["encoder_hidden_states_mask"]
    assert not mask.all()
    with torch.no_grad():
        plain = golden_model(**inputs)
        for junk in (float("nan"), 1e30):
            inputs["encoder_hidden_states"] = [
                layer.masked_fill(~mask[..., None], junk) for layer in inputs["encoder_hidden_states"]
            ]
            assert torch.equal(golden_model(**inputs), plain)


def test_masked_text_is_no_text(golden_model, cases):
    inputs = golden_inputs(cases, 0)
    size, length = inputs["encoder_hidden_states_mask"].shape
    without = {
        **inputs,
        "encoder_hidden_states": [layer[:, :0] for layer in inputs["encoder_hidden_states"]],
        "encoder_hidden_states_mask": torch.zeros(size, 0, dtype=torch.bool),
    }
    inputs["encoder_hidden_states_mask"] = torch.zeros(size, length, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(golden_model(**inputs), golden_model(**without))


def test_no_mask_means_that_every_token_counts(golden_model, cases):
    inputs = golden_inputs(cases, 0)
    without = {**inputs, "encoder_hidden_states_mask": None}
    inputs["encoder_hidden_states_mask"] = torch.ones_like(inputs["encoder_hidden_states_mask"])
    with torch.no_grad():
        assert torch.equal(golden_model(**without), golden_model(**inputs))


@pytest.mark.parametrize("bad", [[False, True, True], [True, False, True], [False, False, True]])
def test_padding_elsewhere_than_on_the_right_is_refused(golden_model, bad):
    mask = torch.tensor([[True, True, True], bad])
    with pytest.raises(ValueError, match="True on the left and False on the right"):
        golden_model(
            hidden_states=torch.zeros(2, 4, 16),
            encoder_hidden_states=[torch.zeros(2, 3, 24)] * 4,
            encoder_hidden_states_mask=mask,
            timestep=torch.ones(2),
            img_shapes=[(1, 2, 2)],
        )


def test_grid_that_does_not_fit_is_refused(golden_model, cases):
    inputs = golden_inputs(cases, 0) | {"img_shapes": [(1, 4, 5)]}
    with pytest.raises(ValueError, match="cover the image tokens"):
        golden_model(**inputs)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("gate_mlp", False, "must be true"),
        ("rms_norm", False, "must be true"),
        ("multi_layer_encoder_feature", False, "must be true"),
        ("axes_dims_rope", (4, 6, 8), "must add up to 16"),
    ],
)
def test_variants_that_were_never_released_are_refused(field, value, words):
    with pytest.raises(ValueError, match=words):
        LensTransformer2DModel(**{**TINY, field: value})


def test_inner_dim_is_accepted_and_ignored():
    model = LensTransformer2DModel(**TINY, inner_dim=999)
    assert model.config["inner_dim"] == DIM
    assert model.img_in.weight.shape == (DIM, 16)


def test_out_channels_default_to_in_channels():
    model = LensTransformer2DModel(**{**TINY, "out_channels": None})
    assert model.proj_out.weight.shape == (4 * 16, DIM)


def test_zero_gates_make_every_block_the_identity(samples):
    model = random_lens()
    gates = [*range(2 * DIM, 3 * DIM), *range(5 * DIM, 6 * DIM)]
    with torch.no_grad():
        for block in model.transformer_blocks:
            for modulation in (block.img_mod[1], block.txt_mod[1]):
                modulation.weight[gates] = 0
                modulation.bias[gates] = 0
        one = samples[0]
        output = model.forward_ragged(pack([one]))
        # What is left: the embedding, and the output norm with its scale before its shift.
        embedder = model.time_text_embed.timestep_embedder
        time = embedder.linear_2(F.silu(embedder.linear_1(timestep_embedding(one.timestep[None]))))
        scale, shift = model.norm_out.linear(F.silu(time)).chunk(2, dim=-1)
        x = model.img_in(one.image)
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        torch.testing.assert_close(output, model.proj_out(x * (1 + scale) + shift), rtol=0, atol=1e-12)


def test_dead_weights_of_the_last_block_change_nothing(samples):
    model = random_lens(dtype=torch.float32)
    batch = pack([one.to(torch.float32) for one in samples])
    with torch.no_grad():
        before = model.forward_ragged(batch)
        last = model.transformer_blocks[-1]
        last.txt_mod[1].weight[2 * DIM :] += 1
        last.txt_mod[1].bias[2 * DIM :] += 1
        for module in (last.attn.to_add_out, last.attn.norm_added_q, last.txt_norm2, last.txt_mlp):
            for parameter in module.parameters():
                parameter += 1
        assert torch.equal(model.forward_ragged(batch), before)


@pytest.mark.parametrize(
    "name",
    [
        "transformer_blocks.0.attn.to_add_out.weight",
        "transformer_blocks.0.txt_norm2.weight",
        "transformer_blocks.0.txt_mlp.w2.weight",
        "transformer_blocks.0.attn.norm_added_q.weight",
        "transformer_blocks.1.attn.norm_added_k.weight",
        "transformer_blocks.1.txt_norm1.weight",
        "transformer_blocks.1.txt_mod.1.weight",
    ],
)
def test_living_text_weights_reach_the_output(samples, name):
    model = random_lens()
    with torch.no_grad():
        before = model.forward_ragged(pack(samples))
        model.get_parameter(name)[0] += 1
        assert (model.forward_ragged(pack(samples)) - before).abs().max() > 1e-6


def test_fresh_weights_depend_on_the_seed_alone():
    models = [LensTransformer2DModel(**TINY) for _ in range(3)]
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.fill_(float("nan"))  # whatever was there is overwritten
    before = torch.get_rng_state()
    for model, seed in zip(models, (3, 3, 4), strict=True):
        model.init_weights(seed)
    assert torch.equal(torch.get_rng_state(), before)
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["img_in.weight"], other["img_in.weight"])


def test_first_prediction_is_zero(samples):
    model = random_lens()
    model.init_weights(0)
    assert not model.forward_ragged(pack(samples)).any()


def test_first_gradients_are_not_zero(samples):
    """Zero where adaLN-Zero has it, but not so many zeros that nothing can be learnt."""
    model = random_lens()
    model.init_weights(0)
    (model.forward_ragged(pack(samples)) - 1).square().mean().backward()
    assert model.proj_out.bias.grad.abs().min() > 0


def test_bfloat16_is_near_float32(cases, golden_model):
    samples = [one for number in CASES for one in golden_samples(cases, number)[0]]
    with torch.no_grad():
        exact = golden_model.forward_ragged(pack(samples))
        model = golden_model.bfloat16()
        batch = pack([one.to(torch.bfloat16) for one in samples])
        rounded = model.forward_ragged(replace(batch, timestep=pack(samples).timestep))
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() / exact.norm() < 0.02


def test_bfloat16_weights_see_the_exact_time():
    """0.827 and 0.829 are one number in bfloat16."""
    assert torch.equal(torch.tensor(0.827).bfloat16(), torch.tensor(0.829).bfloat16())
    model = random_lens(dtype=torch.bfloat16)
    batch = pack(random_samples(SHAPES[:1], dtype=torch.bfloat16))
    first, second = (
        model.forward_ragged(replace(batch, timestep=torch.tensor([time]))).float() for time in (0.827, 0.829)
    )
    assert (first - second).norm() > 0.02 * first.norm()


def test_gradients_of_a_pack_are_the_sum_of_those_alone(samples):
    model = random_lens()

    def gradients(batches):
        model.zero_grad(set_to_none=True)
        for batch in batches:
            model.forward_ragged(batch).square().sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    together, alone = gradients([pack(samples)]), gradients(pack([one]) for one in samples)
    assert together.keys() == alone.keys()
    for name, gradient in together.items():
        assert (gradient - alone[name]).abs().max() <= 1e-10 * max(1.0, float(alone[name].abs().max())), name


def test_gradients_are_derivatives():
    """Backward passes are written by hand here and there; finite differences know nothing of that."""
    model = random_lens(num_layers=2)
    batch = pack(random_samples(SHAPES[:3]))

    def run(image, *text):
        return model.forward_ragged(replace(batch, image=image, text=list(text)))

    inputs = [batch.image, *batch.text]
    assert torch.autograd.gradcheck(run, [tensor.clone().requires_grad_() for tensor in inputs], fast_mode=True)


def test_gradients_of_weights_are_derivatives():
    model = random_lens()
    batch = pack(random_samples(SHAPES[:3]))
    generator = torch.Generator().manual_seed(0)
    model.forward_ragged(batch).square().sum().backward()
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        step = 1e-5 * direction / direction.norm()
        with torch.no_grad():
            parameter += step
            above = model.forward_ragged(batch).square().sum()
            parameter -= 2 * step
            below = model.forward_ragged(batch).square().sum()
            parameter += step
            slope = 0.0 if parameter.grad is None else float((parameter.grad * step).sum())
        assert slope == pytest.approx(float(above - below) / 2, rel=1e-5, abs=1e-10), name


def test_backward_twice_gives_the_same_bits(samples):
    model = random_lens(dtype=torch.float32)
    batch = pack([one.to(torch.float32) for one in samples])
    runs = []
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        model.forward_ragged(batch).square().sum().backward()
        runs.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_checkpointing_changes_no_gradient(samples):
    """The blocks are computed again in the backward pass, from their inputs."""
    gradients, forwards = [], []
    for enabled in (False, True):
        model = random_lens()
        model.enable_gradient_checkpointing(enabled)
        calls = []
        model.transformer_blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        batch = pack(samples)
        for layer in batch.text:
            layer.requires_grad_()
        model.forward_ragged(batch).sin().sum().backward()
        forwards.append(len(calls))
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert forwards == [1, 2]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_modulation_computed_ahead_changes_nothing(samples):
    """One row for each different time, whichever segments share it."""
    model = random_lens()
    batch = pack(samples)
    times, rows = batch.timestep.unique(return_inverse=True)
    table = model.modulation(times).take(rows)
    assert len(table.out) == len(times)
    torch.testing.assert_close(
        model.forward_ragged(batch, modulation=table), model.forward_ragged(batch), rtol=0, atol=1e-12
    )
    # It is all that the modulation layers are needed for.
    for module in model.modulation_modules():
        module.to("meta")
    torch.testing.assert_close(
        model.forward_ragged(batch, modulation=table), random_lens().forward_ragged(batch), rtol=0, atol=1e-12
    )


def test_a_moment_of_the_same_segments_keeps_the_layout(samples):
    model = random_lens()
    batch = pack(samples)
    model.forward_ragged(batch)
    (layout,) = batch.derived.values()
    later = batch.at(batch.image * 2, batch.timestep / 2)
    assert model.forward_ragged(later).shape == batch.image.shape
    assert list(later.derived.values()) == [layout]
    fresh = pack(samples).at(batch.image * 2, batch.timestep / 2)
    assert torch.equal(model.forward_ragged(later), model.forward_ragged(fresh))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_another_attention_backend(samples):
    model = random_lens(dtype=torch.float32)
    batch = pack([sample.to(torch.float32) for sample in samples])
    expected = model.forward_ragged(batch)
    model.set_attention_backend("flex")
    with torch.no_grad():
        torch.testing.assert_close(model.forward_ragged(batch), expected, rtol=1e-5, atol=1e-5)


def test_a_folder_brings_it_back(tmp_path, samples):
    model = random_lens(dtype=torch.float32)
    model.save_pretrained(tmp_path / "model" / "transformer")
    again = LensTransformer2DModel.from_pretrained(tmp_path / "model", subfolder="transformer")
    batch = pack([sample.to(torch.float32) for sample in samples])
    assert torch.equal(again.forward_ragged(batch), model.forward_ragged(batch))
    assert again.config == model.config
    assert not again.training
    half = LensTransformer2DModel.from_pretrained(tmp_path / "model" / "transformer", torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "cannot be read"),
        ("{", "describes no Lens denoiser"),
        ("[]", "describes no Lens denoiser"),
        ('{"layers": 3}', "describes no Lens denoiser: .*unexpected keyword argument 'layers'"),
        ('{"axes_dims_rope": [1, 2, 3]}', "must add up to 64"),
    ],
)
def test_a_folder_that_is_none(tmp_path, config, words):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ArtifactError, match=words):
        LensTransformer2DModel.from_pretrained(tmp_path)
