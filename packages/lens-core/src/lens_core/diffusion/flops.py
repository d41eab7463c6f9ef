"""Exact matmul FLOPs of a training step, in closed form.

Only matrix products count (2 FLOPs per multiply-add), as in `torch.utils.flop_counter`, against which the tests hold
these formulas. Suffixes in the text: n and m image and text tokens of a segment, S = n + m, d the model's width, h the
MLP's, C token channels, E·K the text features of all layers.

Backward is twice forward (a product for the input's gradient, one for the weight's), except that the gradient with
respect to data (tokens, timestep) is not computed. Text features are no exception even when their encoder is frozen:
they pass a norm with a weight of its own before the first product. What an attention backend pads is not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["block_flops", "denoiser_flops"]


def denoiser_flops(config: Mapping[str, Any], image_lengths: Sequence[int], text_lengths: Sequence[int]) -> float:
    """FLOPs of one training step (forward and backward, no recomputation) of the Lens denoiser.

    Args:
        config: the model's `config`.
        image_lengths: image tokens of each segment.
        text_lengths: text tokens of each segment.
    """
    d = config["num_attention_heads"] * config["attention_head_dim"]
    h = int(d / 3 * 8)
    blocks = config["num_layers"]
    features = config["enc_hidden_dim"] * len(config["selected_layer_index"])
    channels = config["in_channels"]
    out = config["patch_size"] ** 2 * (config["out_channels"] or channels)
    segments, n, m = len(image_lengths), sum(image_lengths), sum(text_lengths)
    squares = sum((i + t) ** 2 for i, t in zip(image_lengths, text_lengths, strict=True))

    # Products whose input needs a gradient: forward, and twice that backward.
    image_block = n * (3 * d * d + d * d + 3 * d * h)
    text_block = m * (3 * d * d + d * d + 3 * d * h)
    text_last = m * 3 * d * d  # the last block makes keys and values of the text, and nothing after them
    full = 2.0 * (
        blocks * image_block
        + (blocks - 1) * text_block
        + text_last
        + segments * blocks * 12 * d * d
        + segments * (d * d + 2 * d * d)
        + n * d * out
        + m * features * d
    )
    attention = 4.0 * blocks * squares * d
    # Products whose input is data: forward, and once backward.
    data = 2.0 * (n * channels * d + segments * 256 * d)
    return 3.0 * (full + attention) + 2.0 * data


def block_flops(config: Mapping[str, Any], image_lengths: Sequence[int], text_lengths: Sequence[int]) -> float:
    """FLOPs of the blocks' forward pass, which full activation checkpointing makes twice.

    Per block and stream 2·tokens·(4·d² + 3·d·h), 4·d·S² for attention, and 24·d² of modulation per segment. The last
    block makes keys and values of the text and nothing after them.

    Args:
        config: the model's `config`.
        image_lengths: image tokens of each segment.
        text_lengths: text tokens of each segment.
    """
    d = config["num_attention_heads"] * config["attention_head_dim"]
    h, blocks = int(d / 3 * 8), config["num_layers"]
    n, m = sum(image_lengths), sum(text_lengths)
    squares = sum((i + t) ** 2 for i, t in zip(image_lengths, text_lengths, strict=True))
    stream = 4 * d * d + 3 * d * h
    linears = blocks * n * stream + (blocks - 1) * m * stream + m * 3 * d * d
    return 2.0 * (linears + len(image_lengths) * blocks * 12 * d * d) + 4.0 * blocks * squares * d
