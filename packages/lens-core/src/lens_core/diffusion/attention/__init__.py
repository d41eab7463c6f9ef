"""Joint attention over ragged segments: each segment attends within itself, image and text together.

    plan.py       the joint layout: where each token of the streams lies among its segment's
    heads.py      from the streams' projections to normed and rotated queries, keys and values in that layout
    reference.py  dense calls per group of segments; everywhere
    varlen.py     variable-length kernels; CUDA, half precision
    flex.py       FlexAttention; CUDA, and forward only on a CPU

A backend plans a batch once, not per block, and is then called once per block.
"""

from lens_core.diffusion.attention.backends import BACKENDS, AttentionBackend, attention_backend
from lens_core.diffusion.attention.plan import AttentionPlan

__all__ = ["BACKENDS", "AttentionBackend", "AttentionPlan", "attention_backend"]
