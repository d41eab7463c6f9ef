"""Attention within segments, against a softmax written out for each of them."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_core.diffusion.attention import MAX_WASTE, plan_attention, reference_attention

CPU = torch.device("cpu")
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
    output = reference_attention(*inputs, plan_attention(*streams, device=CPU))
    expected = by_segment(*inputs, streams)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    if not len(output):
        return  # nothing to differentiate
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), inputs) for x in (output, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def check_plan(streams):
    plan = plan_attention(*streams, device=CPU)
    tokens = torch.arange(1.0, 1 + sum(map(sum, streams)))[:, None]
    rows = plan.pack(tokens)
    assert len(rows) == sum(group.count * group.size for group in plan.groups)
    # Every token has one row, the other rows are zero, and there is a way back.
    assert sorted(rows[rows > 0].tolist()) == tokens[:, 0].tolist()
    assert torch.equal(plan.unpack(rows), tokens)
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
    (group,) = plan_attention([4, 4, 4], [2, 2, 2], device=CPU).groups
    assert (group.count, group.size, group.mask) == (3, 6, None)


@pytest.mark.parametrize("streams", [([3, 3],), ([2, 4, 0], [1, 0, 2])], ids=str)
def test_gradients_are_derivatives(streams):
    plan = plan_attention(*streams, device=CPU)
    assert torch.autograd.gradcheck(lambda q, k, v: reference_attention(q, k, v, plan), buffers(streams))


@pytest.mark.parametrize("streams", [([6, 6, 6],), ([6, 5, 2], [5, 4, 3])], ids=str)
@pytest.mark.parametrize("junk", [1e4, float("nan")])
def test_segments_do_not_hear_each_other(streams, junk):
    """Not even a segment that shares a padded call, and not even a NaN."""
    plan = plan_attention(*streams, device=CPU)
    inputs = [x.detach().float() for x in buffers(streams)]
    before = reference_attention(*inputs, plan)
    for places in tokens_of(streams):
        spoilt = [x.clone() for x in inputs]
        for x in spoilt:
            x[places] = junk
        after = reference_attention(*spoilt, plan)
        others = sorted(set(range(len(before))) - set(places))
        assert torch.equal(after[others], before[others])
        assert not torch.equal(after[places], before[places])


def test_gradients_do_not_leak_either():
    streams = ([6, 5, 2], [5, 4, 3])
    plan = plan_attention(*streams, device=CPU)
    for places in tokens_of(streams):
        inputs = buffers(streams)
        reference_attention(*inputs, plan)[places].sin().sum().backward()
        others = sorted(set(range(25)) - set(places))
        for x in inputs:
            assert not x.grad[others].any()
            assert x.grad[places].any()


def test_backward_twice_gives_the_same_bits():
    streams = ([60, 33, 7, 1], [5, 0, 3, 1])
    plan = plan_attention(*streams, device=CPU)
    inputs = buffers(streams, torch.float32)
    runs = [torch.autograd.grad(reference_attention(*inputs, plan).sin().sum(), inputs) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
