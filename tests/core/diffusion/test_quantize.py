"""Linears in eight bits: which they are, how far they stray, what they weigh, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.diffusion.packs import pack, random_lens, random_model, random_samples
from lens_core.diffusion import Request, generate
from lens_core.diffusion.models.lens.config import LensModelConfig
from lens_core.diffusion.models.lens.model import build
from lens_core.diffusion.quantize import FP8Linear, Int8Linear, QuantizedLinear, quantize_linears
from lens_core.diffusion.weights import (
    fuse_loras,
    load_lora,
    load_weights,
    save_single_file,
    save_weights,
    unload_loras,
)
from lens_core.errors import ConfigError

KINDS = {"int8": Int8Linear, "fp8": FP8Linear}
OF_A_BLOCK = {
    *("attn.img_qkv", "attn.txt_qkv", "attn.to_out.0", "attn.to_add_out"),
    *("img_mlp.w1", "img_mlp.w2", "img_mlp.w3", "txt_mlp.w1", "txt_mlp.w2", "txt_mlp.w3"),
}


def e4m3_values():
    """What eight bits of sign, exponent (4, bias 7) and fraction (3) stand for; the last pattern is no number."""
    values = [fraction / 8 * 2**-6 for fraction in range(8)]
    values += [(1 + fraction / 8) * 2 ** (exponent - 7) for exponent in range(1, 16) for fraction in range(8)]
    positive = torch.tensor(values[:-1], dtype=torch.float64)
    return torch.cat([-positive.flip(0), positive])


def random_linear(rows=48, columns=64, *, bias=True, dtype=torch.float32, seed=0):
    """Rows of very different size, one of them zero."""
    linear = nn.Linear(columns, rows, bias=bias)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        size_O1 = 10.0 ** torch.linspace(-6, 3, rows)[:, None]
        linear.weight.copy_(torch.randn(rows, columns, generator=generator) * size_O1)
        linear.weight[3] = 0
        if bias:
            linear.bias.copy_(torch.randn(rows, generator=generator))
    return linear.to(dtype)


def tokens(count=20, columns=64, dtype=torch.float32, seed=1):
    x_NI = torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)) * 3
    return x_NI.to(dtype)


def nano():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(LensModelConfig(preset="nano"), in_channels=48, enc_hidden_dim=64, num_text_layers=2)
    samples = random_samples(
        [((8, 8), 20), ((4, 6), 50), ((8, 8), 0)], channels=48, width=64, layers=2, dtype=torch.float32
    )
    return model.eval(), samples


def velocity(model, samples):
    with torch.no_grad():
        return model.forward_ragged(pack(samples))


def cosine(a, b):
    return float(F.cosine_similarity(a.detach().double().flatten(), b.detach().double().flatten(), dim=0))


def largest_error(output_NO, exact_NO):
    """The worst output channel's, relative: their sizes differ by nine orders of magnitude."""
    error_O, size_O = (output_NO.detach().double() - exact_NO.detach()).norm(dim=0), exact_NO.detach().norm(dim=0)
    return float((error_O / size_O)[size_O > 0].max())


def nbytes(module):
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_linears_of_the_blocks_and_no_others(kind):
    model = random_lens()
    before = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    weights = {name: (part.weight.clone(), part.bias) for name, part in before.items()}
    assert quantize_linears(model, kind) == 2 * 10
    quantized = {name for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}
    assert quantized == {f"transformer_blocks.{block}.{name}" for block in (0, 1) for name in OF_A_BLOCK}
    for name, linear in before.items():
        now = model.get_submodule(name)
        assert now.bias is weights[name][1]
        if name in quantized:
            assert type(now) is KINDS[kind]
        else:
            assert now is linear
            assert torch.equal(now.weight, weights[name][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_int8_moves_a_weight_by_half_a_step_at_most(dtype):
    linear = random_linear(dtype=dtype)
    quantized = Int8Linear(linear)
    w = linear.weight.detach().double()
    step = w.abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(quantized.scale_O1.double()[w.any(1)], step[w.any(1)], rtol=1e-6, atol=0)
    error = (quantized.decode(torch.float64) - w).abs()
    assert bool((error <= step * (0.5 + 1e-5)).all())
    assert quantized.codes_OI.dtype == torch.int8
    # The largest of a row is at the end of the scale, and nothing is beyond.
    assert quantized.codes_OI.abs().amax(1)[w.any(1)].eq(127).all()
    assert not quantized.codes_OI[3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_takes_the_nearest_value_that_there_is(dtype):
    linear = random_linear(dtype=dtype)
    quantized = FP8Linear(linear)
    w = linear.weight.detach().double()
    scale = quantized.scale_O1.double()
    torch.testing.assert_close(scale[w.any(1)], w.abs().amax(1, keepdim=True)[w.any(1)] / 448, rtol=1e-6, atol=0)
    error = (quantized.decode(torch.float64) - w).abs()
    nearest = ((w / scale)[..., None] - e4m3_values()).abs().amin(-1) * scale
    assert bool((error <= nearest + 1e-6 * w.abs()).all())
    assert bool((error <= torch.maximum(w.abs() / 16, scale / 1024) * (1 + 1e-5)).all())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "share"), [(Int8Linear, 1 / 2), (FP8Linear, 448 / 16)])
def test_an_output_strays_no_farther_than_its_weights_can_have_it(kind, share, bias):
    linear, x_NI = random_linear(bias=bias).double(), tokens(dtype=torch.float64)
    quantized = kind(linear)
    error_NO = (quantized(x_NI) - linear(x_NI)).abs()
    bound_NO = share * quantized.scale_O1.double().T * x_NI.abs().sum(1, keepdim=True)
    assert bool((error_NO <= bound_NO * (1 + 1e-5)).all())
    assert bool(error_NO.any())


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_computes_in_the_dtype_of_its_tokens(kind, dtype):
    linear = random_linear(dtype=dtype)
    quantized = kind(linear)
    output = quantized(tokens(dtype=dtype))
    assert output.dtype == dtype
    exact = F.linear(tokens(dtype=dtype).double(), quantized.decode(torch.float64), linear.bias.double())
    assert largest_error(output, exact) < (0.01 if dtype == torch.bfloat16 else 1e-6)
    assert quantized(tokens(0, dtype=dtype)).shape == (0, 48)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_in_fp8(dtype, bias):
    """Here PyTorch multiplies FP8 on the CPU too, if only for this test: linears use it on a GPU."""
    quantized, x_NI = FP8Linear(random_linear(bias=bias, dtype=dtype)), tokens(dtype=dtype)
    output = quantized.multiply(x_NI)
    scale_N1 = x_NI.double().abs().amax(1, keepdim=True) / 448
    values = e4m3_values()
    rounded = values[((x_NI.double() / scale_N1)[..., None] - values).abs().argmin(-1)] * scale_N1
    exact = F.linear(rounded, quantized.decode(torch.float64))
    exact = exact + quantized.bias.double() if bias else exact
    assert output.dtype == dtype
    # The end is rounded to bfloat16, and a token in the middle between two values may go either way.
    assert largest_error(output, exact) < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS.values())
def test_a_gpu_draws_the_same(kind):
    quantized = kind(random_linear(dtype=torch.bfloat16))
    expected = quantized(tokens(dtype=torch.bfloat16))
    output = copy.deepcopy(quantized).cuda()(tokens(dtype=torch.bfloat16).cuda()).cpu()
    assert cosine(output, expected) > 0.998
    assert quantized.cuda()(tokens(0, dtype=torch.bfloat16).cuda()).shape == (0, 48)


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_gradient_reaches_the_tokens(kind):
    quantized, x_NI = kind(random_linear().double()), tokens(dtype=torch.float64).requires_grad_()
    quantized(x_NI).sum().backward()
    torch.testing.assert_close(x_NI.grad, quantized.decode(torch.float64).sum(0).expand_as(x_NI))


@pytest.mark.parametrize(("kind", "likeness"), [("int8", 1 - 3e-5), ("fp8", 1 - 5e-4)])
def test_the_golden_model_hardly_changes(golden_model, kind, likeness):
    """The bounds are about three times what is measured; rounding the model to bfloat16 costs 1 - 2.5e-5."""
    samples = random_samples(dtype=torch.float32)
    before = velocity(golden_model, samples)
    quantize_linears(golden_model, kind)
    assert likeness < cosine(velocity(golden_model, samples), before) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "likeness"), [("int8", 1 - 1e-6), ("fp8", 1 - 1e-5)])
def test_a_nano_model_hardly_changes(kind, likeness, dtype):
    model, samples = nano()
    before = velocity(model, samples)
    model.to(dtype)
    quantize_linears(model, kind)
    after = velocity(model, [sample.to(dtype) for sample in samples])
    assert after.dtype == dtype
    assert cosine(after, before) > (likeness if dtype == torch.float32 else 1 - 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_falls_by_what_eight_bits_save(kind, dtype):
    model = nano()[0].to(dtype)
    before = nbytes(model)
    weights = [part.weight.shape for part in model.modules() if isinstance(part, nn.Linear)]
    quantize_linears(model, kind)
    quantized = [part.codes_OI.shape for part in model.modules() if isinstance(part, QuantizedLinear)]
    saved = sum((dtype.itemsize - 1) * rows * columns - 4 * rows for rows, columns in quantized)
    assert before - nbytes(model) == saved
    assert saved > 0.3 * before
    assert len(weights) == len(quantized) + 6 + 2 * len(
        model.transformer_blocks
    )  # img_in, txt_in, … and modulation stay


def test_codes_and_scales_keep_their_dtype_whatever_the_model_takes():
    for kind in KINDS:
        model = random_lens(dtype=torch.float32)
        quantize_linears(model, kind)
        before = dict(copy.deepcopy(model).named_buffers())
        model.to(torch.bfloat16)
        for name, buffer in model.named_buffers():
            assert buffer.dtype == before[name].dtype
            assert torch.equal(buffer, before[name])
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        velocity(model, random_samples(dtype=torch.bfloat16))


def test_a_mode_is_taken_over():
    assert not Int8Linear(random_linear().eval()).training
    assert Int8Linear(random_linear().train()).training


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_draws_pictures_with_any_plan_of_memory(tmp_path, lens_registry, kind):
    model = random_model(tmp_path / "model", lens_registry)
    requests = [Request(prompt="a red circle", height=16, width=16, seed=1), Request(height=16, width=32, seed=2)]
    exact = generate(model, requests)
    quantize_linears(model.transformer, kind)
    images = generate(model, requests)
    for image, other in zip(images, exact, strict=True):
        assert abs(image.astype(int) - other.astype(int)).mean() < 4
    model.to(torch.device("cpu"), take_turns=True, modulation_table=True)
    for image, other in zip(images, generate(model, requests), strict=True):
        assert abs(image.astype(int) - other.astype(int)).max() <= 1


def refused(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_no_checkpoint(tmp_path, kind):
    model = random_lens()
    save_weights(model, tmp_path / "plain")
    quantize_linears(model, kind)
    before = velocity(model, random_samples())
    for call in (
        model.state_dict,
        lambda: save_weights(model, tmp_path / "saved"),
        lambda: save_single_file(model, tmp_path / "saved.safetensors"),
        lambda: load_weights(model, tmp_path / "plain"),
    ):
        assert "quantised: save the model" in refused(call)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
    assert torch.equal(velocity(model, random_samples()), before)


def lora(model, target):
    """A LoRA of rank 2 on one linear."""
    generator = torch.Generator().manual_seed(0)
    linear = model.get_submodule(target)
    return {
        f"transformer.{target}.lora_A.weight": torch.randn(2, linear.in_features, generator=generator),
        f"transformer.{target}.lora_B.weight": torch.randn(linear.out_features, 2, generator=generator) * 0.1,
    }


def test_a_lora_comes_first():
    target = "transformer_blocks.0.attn.img_qkv"
    model = random_lens()
    quantized = copy.deepcopy(model)
    quantize_linears(quantized, "int8")
    before = velocity(quantized, random_samples())
    assert "fuse LoRAs before" in refused(lambda: load_lora(quantized, lora(model, target)))
    assert torch.equal(velocity(quantized, random_samples()), before)

    load_lora(model, lora(model, target))
    drawn = velocity(model, random_samples())
    assert "unload_loras before quantize_linears" in refused(lambda: quantize_linears(model, "int8"))
    assert torch.equal(velocity(model, random_samples()), drawn)

    fuse_loras(model)
    unload_loras(model)
    assert quantize_linears(model, "int8") == 20
    assert cosine(velocity(model, random_samples()), drawn) > 1 - 1e-4 > cosine(before, drawn)


def test_a_lora_on_what_is_not_quantized():
    """Modulation has its weights, so that these may carry one."""
    target = "transformer_blocks.0.img_mod.1"
    model = random_lens()
    quantize_linears(model, "int8")
    before = velocity(model, random_samples())
    assert load_lora(model, lora(model, target)) == [target]
    assert not torch.equal(velocity(model, random_samples()), before)


def test_what_cannot_be_quantized():
    model = random_lens()
    assert "to int8 or fp8, not to 'int4'" in refused(lambda: quantize_linears(model, "int4"))
    assert "Linear has no transformer_blocks" in refused(lambda: quantize_linears(nn.Linear(2, 2), "int8"))
    other = nn.Module()
    other.transformer_blocks = nn.ModuleList([nn.Linear(2, 2)])
    assert "Linear has no 'attn.img_qkv'" in refused(lambda: quantize_linears(other, "int8"))
    with torch.device("meta"):
        unloaded = random_lens().to("meta")
    assert "no weight yet" in refused(lambda: quantize_linears(unloaded, "fp8"))
    quantize_linears(model, "int8")
    assert "quantised already" in refused(lambda: quantize_linears(model, "fp8"))


def test_all_or_nothing():
    """The last block is found wanting before the first is touched."""
    model = random_lens()
    model.transformer_blocks[1].txt_mlp.w3 = nn.Identity()
    assert "'txt_mlp.w3' is a Identity" in refused(lambda: quantize_linears(model, "int8"))
    assert not any(isinstance(part, QuantizedLinear) for part in model.modules())


def test_one_sample_or_many():
    """Tokens are multiplied each for itself: neighbours change nothing."""
    model, samples = random_lens(dtype=torch.float32), random_samples(dtype=torch.float32)
    quantize_linears(model, "fp8")
    together = velocity(model, samples)
    alone = torch.cat([velocity(model, [sample]) for sample in samples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS.values())
def test_it_compiles_into_one_graph(kind):
    quantized, x_NI = kind(random_linear()), tokens()
    compiled = torch.compile(quantized, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x_NI), quantized(x_NI), rtol=1e-6, atol=1e-5)
