"""Compiled blocks: they draw what plain ones do, and are compiled for kinds of batches, not for each batch."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from core.diffusion.packs import SHAPES, pack, random_lens, random_samples
from lens_core.diffusion.quantize import quantize_linears

LAYOUTS = (
    SHAPES,  # one of them without text
    SHAPES[2:],
    [((4, 4), 3)] * 3,  # all alike
    [((2, 2), 1), ((3, 5), 8)],
    [((5, 4), 20), ((3, 6), 2), ((3, 6), 2), ((6, 3), 1)],
)
ALONE = ([((3, 3), 4)], [((4, 6), 9)])
WITHOUT_TEXT = ([((4, 4), 0)] * 2, [((2, 3), 0), ((3, 3), 0), ((5, 1), 0)])


def has_compiler():
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


@pytest.fixture(autouse=True)
def _afresh():
    """What other tests compiled counts against the same limit."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model():
    return random_lens(dtype=torch.float32)


def batch(shapes, **options):
    return pack(random_samples(shapes, **{"dtype": torch.float32, **options}))


def compiled(model, **options):
    twin = copy.deepcopy(model)
    twin.compile_blocks(**options)
    return twin


def compilations():
    """Graphs that were compiled so far."""
    return counters["stats"]["unique_graphs"]


def draw(model, one):
    with torch.inference_mode():
        return model.forward_ragged(one)


def assert_draws(model, other, shapes):
    one = batch(shapes)
    torch.testing.assert_close(draw(model, one), draw(other, one), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_compiled_blocks_draw_the_same(model):
    twin = compiled(model)
    assert_draws(twin, model, LAYOUTS[0])
    once = compilations()
    for shapes in LAYOUTS[1:]:
        assert_draws(twin, model, shapes)
    assert compilations() == once
    assert list(twin.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("backend", ["reference", "flex"])
def test_no_batch_is_compiled_for_but_the_first_of_a_kind(model, backend):
    """One text token, or one segment, or none: of such a size the compiler makes a case of its own."""
    twin = compiled(model, backend="eager", fullgraph=backend == "flex")
    twin.set_attention_backend(backend)
    seen = []
    for kind in (LAYOUTS, ALONE, WITHOUT_TEXT):
        assert_draws(twin, model, kind[0])
        seen.append(compilations())
        for shapes in kind[1:]:
            assert_draws(twin, model, shapes)
        assert compilations() == seen[-1]
    # Two kinds of blocks each: the last has no text half. "reference" is left out, and parts a block into four pieces.
    assert seen[0] == (7 if backend == "reference" else 2)
    for shapes in (*LAYOUTS, *ALONE, *WITHOUT_TEXT):
        assert_draws(twin, model, shapes)
    assert compilations() == seen[-1]


def test_varlen_leaves_a_block_whole():
    """On the meta device, where nothing is computed: its kernels are CUDA's."""
    model = random_lens(dtype=torch.bfloat16).to("meta")
    model.set_attention_backend("varlen")
    model.compile_blocks(backend="eager", fullgraph=True)
    for shapes in LAYOUTS:
        one = batch(shapes, dtype=torch.bfloat16)
        text = [layer.to("meta") for layer in one.text]
        draw(model, replace(one, image=one.image.to("meta"), text=text, timestep=one.timestep.to("meta")))
    assert compilations() == 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
def test_compiled_blocks_have_the_same_gradients(model):
    twin = compiled(model, backend="aot_eager")
    seen = []
    for checkpointing in (False, True):
        twin.enable_gradient_checkpointing(checkpointing)
        for shapes in LAYOUTS[:3]:
            gradients = []
            for one in (model, twin):
                one.zero_grad()
                one.forward_ragged(batch(shapes)).square().sum().backward()
                gradients.append({name: p.grad for name, p in one.named_parameters() if p.grad is not None})
            assert gradients[0].keys() == gradients[1].keys()
            for name, gradient in gradients[0].items():
                largest = float(gradient.abs().max())
                torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)
            seen.append(compilations())
    assert len(set(seen)) == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("shapes", [ALONE[0], WITHOUT_TEXT[0], LAYOUTS[0]], ids=str)
def test_gradients_of_packs_that_are_compiled_apart(model, shapes):
    twin = compiled(model, backend="aot_eager")
    for one in (model, twin):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = one.forward_ragged(batch(shapes))
        output.float().square().sum().backward()
    for (name, ours), theirs in zip(twin.named_parameters(), model.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            difference = float((ours.grad - theirs.grad).norm())
            assert difference <= 0.02 * float(theirs.grad.norm()) + 1e-6, name


def test_quantized_linears_and_a_table_of_modulation(model):
    quantize_linears(model, "int8")
    twin = compiled(model, backend="aot_eager")
    for shapes in LAYOUTS[:2]:
        one = batch(shapes)
        with torch.inference_mode():
            table = model.modulation(one.timestep)
            output = twin.forward_ragged(one, modulation=table)
            expected = model.forward_ragged(one)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert compilations() == 7
