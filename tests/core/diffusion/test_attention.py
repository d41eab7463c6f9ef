"""Attention within segments, against a softmax written out for each of them."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_core.diffusion.attention import BACKENDS, attention_backend
from lens_core.diffusion.attention.reference import MAX_WASTE
from lens_core.errors import ConfigError

CPU = torch.device("cpu")
REFERENCE = attention_backend("reference")
HEADS, CHANNELS = 2, 4
STREAMS = [
    ([3],),
    ([3, 3, 3],),
    ([5, 1, 0, 4],),
    ([0, 0],),
    ([3, 3], [2, 2]),
    ([6, 16, 2], [5, 0, 3]),
    ([1, 2, 3], [3, 2, 1]),  # equally long together, though not apart
    ([0, 4], [3, 0]),
    ([40, 3, 41, 2], [0, 1, 0, 0]),
]


def attend(q, k, v, streams, backend=REFERENCE, device=CPU):
    """A backend over the buffer, as the denoiser calls it."""
    plan = backend.plan(*streams, device=device)
    sizes = [sum(lengths) for lengths in streams]
    rows = [plan.join(*x.split(sizes)).split(plan.sections) for x in (q, k, v)]
    return torch.cat(plan.part(backend(list(zip(*rows, strict=True)), plan)))


def tokens_of(streams):
    """For each segment the places of its tokens in the buffer, stream after stream."""
    places = [[] for _ in streams[0]]
    first = 0
    for lengths in streams:
        for segment, start, length in zip(places, accumulate(lengths, initial=first), lengths, strict=False):
            segment.extend(range(start, start + length))
        first += sum(lengths)
    return places


def by_segment(q, k, v, streams):
    output = torch.zeros_like(v)
    for places in tokens_of(streams):
        scores = torch.einsum("qad,kad->aqk", q[places], k[places]) / math.sqrt(CHANNELS)
        output[places] = torch.einsum("aqk,kad->qad", scores.softmax(-1), v[places])
    return output


def buffers(streams, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(map(sum, streams)))
    shape = (sum(map(sum, streams)), HEADS, CHANNELS)
    return [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for _ in range(3)]


def check_against_naive(streams):
    inputs = buffers(streams)
    output = attend(*inputs, streams)
    expected = by_segment(*inputs, streams)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    if not len(output):
        return  # nothing to differentiate
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), inputs) for x in (output, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def check_plan(streams):
    plan = REFERENCE.plan(*streams, device=CPU)
    sizes = [sum(lengths) for lengths in streams]
    tokens = torch.arange(1.0, 1 + sum(sizes))[:, None]
    rows = plan.join(*tokens.split(sizes))
    assert len(rows) == plan.rows == sum(group.count * group.size for group in plan.groups)
    # Every token has one row, the other rows are zero, and there is a way back.
    assert sorted(rows[rows > 0].tolist()) == tokens[:, 0].tolist()
    assert ([] if plan.holes is None else plan.holes.tolist()) == (rows[:, 0] == 0).nonzero()[:, 0].tolist()
    assert torch.equal(torch.cat(plan.part(rows)), tokens)
    # A row of a dense call holds one segment, all of it, in the order of its streams, with the padding at its end.
    segments = sorted([token + 1 for token in places] for places in tokens_of(streams) if places)
    held = []
    for group, part in zip(plan.groups, rows.split([g.count * g.size for g in plan.groups]), strict=True):
        for number, row in enumerate(part.view(group.count, group.size)):
            real = torch.ones_like(row, dtype=torch.bool) if group.mask is None else group.mask[number, 0, 0]
            assert torch.equal(real, row > 0)
            held.append(row[real].tolist())
            assert not row[len(held[-1]) :].any()
    assert sorted(held) == segments
    used = sum(group.count * group.size**2 for group in plan.groups)
    assert used <= MAX_WASTE * sum(len(segment) ** 2 for segment in segments)


@pytest.mark.parametrize("streams", STREAMS, ids=str)
def test_equals_a_softmax_per_segment(streams):
    check_against_naive(streams)


@pytest.mark.parametrize("streams", STREAMS, ids=str)
def test_plan_holds_every_segment_once(streams):
    check_plan(streams)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_lengths(pairs, two_streams):
    image, text = zip(*pairs, strict=True)
    streams = (list(image), list(text)) if two_streams else (list(image),)
    check_plan(streams)
    check_against_naive(streams)


def test_equal_lengths_need_no_mask():
    (group,) = REFERENCE.plan([4, 4, 4], [2, 2, 2], device=CPU).groups
    assert (group.count, group.size, group.mask) == (3, 6, None)


@pytest.mark.parametrize("streams", [([3, 3],), ([2, 4, 0], [1, 0, 2])], ids=str)
def test_gradients_are_derivatives(streams):
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, streams), buffers(streams))


@pytest.mark.parametrize("streams", [([6, 6, 6],), ([6, 5, 2], [5, 4, 3])], ids=str)
@pytest.mark.parametrize("junk", [1e4, float("nan")])
def test_segments_do_not_hear_each_other(streams, junk):
    """Not even a segment that shares a padded call, and not even a NaN."""
    inputs = [x.detach().float() for x in buffers(streams)]
    before = attend(*inputs, streams)
    for places in tokens_of(streams):
        spoilt = [x.clone() for x in inputs]
        for x in spoilt:
            x[places] = junk
        after = attend(*spoilt, streams)
        others = sorted(set(range(len(before))) - set(places))
        assert torch.equal(after[others], before[others])
        assert not torch.equal(after[places], before[places])


def test_gradients_do_not_leak_either():
    streams = ([6, 5, 2], [5, 4, 3])
    for places in tokens_of(streams):
        inputs = buffers(streams)
        attend(*inputs, streams)[places].sin().sum().backward()
        others = sorted(set(range(25)) - set(places))
        for x in inputs:
            assert not x.grad[others].any()
            assert x.grad[places].any()


def test_backward_twice_gives_the_same_bits():
    streams = ([60, 33, 7, 1], [5, 0, 3, 1])
    inputs = buffers(streams, torch.float32)
    runs = [torch.autograd.grad(attend(*inputs, streams).sin().sum(), inputs) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("streams", STREAMS, ids=str)
def test_flex_equals_a_softmax_per_segment(streams):
    inputs = [x.detach() for x in buffers(streams, torch.float32)]
    output = attend(*inputs, streams, attention_backend("flex"))
    torch.testing.assert_close(output, by_segment(*inputs, streams), rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("streams", STREAMS, ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_backends_agree_on_a_gpu(streams, name):
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cuda")
    shape = (sum(map(sum, streams)), 4, 64)
    inputs = [torch.randn(shape, generator=generator).bfloat16().to(device).requires_grad_() for _ in range(3)]
    output = attend(*inputs, streams, attention_backend(name), device)
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    expected = attend(*exact, streams)
    torch.testing.assert_close(output.cpu().double(), expected, rtol=0, atol=2e-2)
    if len(output):
        output.float().sin().sum().backward()
        expected.sin().sum().backward()
        for ours, theirs in zip(inputs, exact, strict=True):
            torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=0, atol=3e-2)


@pytest.mark.parametrize("streams", [*STREAMS, ([0, 0], [0, 0])], ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_rows_are_the_same_by_look_up(streams, name, monkeypatch):
    """As a compiler is given them."""
    plan = attention_backend(name).plan(*streams, device=CPU)
    sizes = [sum(lengths) for lengths in streams]
    tokens = torch.arange(1.0, 1 + 8 * sum(sizes)).view(-1, HEADS, CHANNELS)
    written = plan.join(*tokens.split(sizes))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(plan.join(*tokens.split(sizes)), written)


@pytest.mark.parametrize("streams", STREAMS, ids=str)
def test_layout_of_variable_lengths_has_no_holes(streams):
    """The kernels need a GPU, their layout does not: segments one after another, as their offsets say."""
    plan = attention_backend("varlen").plan(*streams, device=CPU)
    tokens = torch.arange(sum(map(sum, streams)))[:, None]
    rows = plan.join(*tokens.split([sum(lengths) for lengths in streams]))
    assert [part[:, 0].tolist() for part in rows.tensor_split(plan.offsets[1:-1].tolist())] == tokens_of(streams)
    assert plan.longest == max(map(len, tokens_of(streams)))


def test_unknown_backend():
    with pytest.raises(ConfigError, match="no attention backend 'sage'; there are reference, varlen, flex"):
        attention_backend("sage")
