"""The Lens denoiser: a dual-stream transformer over ragged batches, key for key the released architecture.

Suffixes: N image tokens, T text tokens, M both; C token channels, E text width, D model width; A heads, P channels per
head; G segments; B, S padded batch and text length.

Source: Microsoft's Lens (arXiv 2605.21573) as its inference code defines it. Image and text have weights of their own
throughout and meet only in attention. The native form is `forward_ragged`; `forward` is the padded call of the
released code, as a thin adapter. Notable:

* modulation is computed once per segment and handed to its tokens;
* the last block's text half cannot reach the output: its parameters exist for the released layout, and are skipped;
* norms' variances, rotary positions and the timestep's sinusoid are computed in float32 whatever the weights are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lens_core.diffusion.attention import AttentionBackend, AttentionPlan, plan_attention, reference_attention
from lens_core.diffusion.flops import denoiser_flops
from lens_core.diffusion.norms import RMSNorm
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.diffusion.segments import Segments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.diffusion.models.lens.config import LensModelConfig

__all__ = ["LensTransformer2DModel", "build", "rope_table", "timestep_embedding"]

ROPE_THETA = 10_000.0
TIMESTEP_WIDTH = 256


class LensTransformer2DModel(nn.Module):
    """Predicts the velocity (noise minus data) of image tokens.

    The arguments are the fields of a released `transformer/config.json`.

    Args:
        patch_size: with `out_channels`, sizes the output: patch_size²·out_channels channels per token.
        in_channels: channels C of an image token.
        out_channels: see `patch_size`; None means `in_channels`.
        num_layers: dual-stream blocks.
        num_attention_heads: heads A.
        attention_head_dim: channels per head P; the model's width is A·P.
        enc_hidden_dim: width E of the text features.
        axes_dims_rope: channels of a head that encode frame, height, width; they add up to P.
        selected_layer_index: which layers of the text encoder the features come from; its length is what matters here.
        inner_dim, gate_mlp, rms_norm, multi_layer_encoder_feature: accepted as released, where they have one value.

    Raises:
        ValueError: axes that do not add up, or a variant that was never released.
    """

    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 128,
        out_channels: int | None = 32,
        num_layers: int = 48,
        num_attention_heads: int = 24,
        attention_head_dim: int = 64,
        enc_hidden_dim: int = 2880,
        axes_dims_rope: Sequence[int] = (8, 28, 28),
        selected_layer_index: Sequence[int] = (5, 11, 17, 23),
        inner_dim: int | None = None,
        gate_mlp: bool = True,
        rms_norm: bool = True,
        multi_layer_encoder_feature: bool = True,
    ):
        super().__init__()
        if sum(axes_dims_rope) != attention_head_dim:
            raise ValueError(f"axes_dims_rope {tuple(axes_dims_rope)} must add up to {attention_head_dim}")
        if not (gate_mlp and rms_norm and multi_layer_encoder_feature):
            raise ValueError("gate_mlp, rms_norm and multi_layer_encoder_feature must be true, as in every release")
        dim = num_attention_heads * attention_head_dim
        self.config = {
            "patch_size": patch_size,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "num_layers": num_layers,
            "num_attention_heads": num_attention_heads,
            "attention_head_dim": attention_head_dim,
            "inner_dim": dim,
            "enc_hidden_dim": enc_hidden_dim,
            "axes_dims_rope": list(axes_dims_rope),
            "gate_mlp": True,
            "rms_norm": True,
            "multi_layer_encoder_feature": True,
            "selected_layer_index": list(selected_layer_index),
        }
        self.axes_dims_rope = tuple(axes_dims_rope)
        self.attention: AttentionBackend = reference_attention
        text_layers = len(selected_layer_index)
        self.img_in = nn.Linear(in_channels, dim)
        self.txt_norm = nn.ModuleList(RMSNorm(enc_hidden_dim, eps=1e-5) for _ in range(text_layers))
        self.txt_in = nn.Linear(text_layers * enc_hidden_dim, dim)
        self.time_text_embed = TimestepEmbedding(dim)
        self.transformer_blocks = nn.ModuleList(
            Block(dim, num_attention_heads, attention_head_dim, is_last=i == num_layers - 1) for i in range(num_layers)
        )
        self.norm_out = OutputNorm(dim)
        self.proj_out = nn.Linear(dim, patch_size**2 * (out_channels or in_channels))

    def forward_ragged(self, batch: RaggedBatch) -> Tensor:
        """Velocity [N, C] of every image token.

        A segment's result depends on nothing but the segment.
        """
        device = batch.image.device
        image_lengths, text_lengths = batch.image_lengths, batch.text_lengths
        image, text = Segments(image_lengths, device), Segments(text_lengths, device)
        joint = plan_attention(image_lengths, text_lengths, device=device)
        rope_MP = rope_table(batch.grids, batch.text_offsets, self.axes_dims_rope).to(device)

        img_ND = self.img_in(batch.image)
        txt_TD = self.txt_in(
            torch.cat([norm(layer) for norm, layer in zip(self.txt_norm, batch.text, strict=True)], dim=-1)
        )
        temb_GD = self.time_text_embed(batch.timestep, img_ND.dtype)
        for block in self.transformer_blocks:
            txt_TD, img_ND = block(txt_TD, img_ND, temb_GD, rope_MP, text, image, joint, self.attention)
        return self.proj_out(self.norm_out(img_ND, temb_GD, image))

    def training_flops(
        self, image_lengths: Sequence[int], text_lengths: Sequence[int], *, text_gradient: bool
    ) -> float:
        """Matmul FLOPs of one training step on segments of these lengths; see `lens_core.diffusion.flops`.

        `text_gradient` makes no difference: the features pass a trained norm before the first product.
        """
        return denoiser_flops(self.config, image_lengths, text_lengths)

    def init_weights(self, seed: int) -> None:
        """Set weights to train from scratch, the same for the same seed.

        Linears are Xavier-uniform with zero biases. The modulation and the output projection start at zero, so that
        every block is the identity and the first prediction is zero (adaLN-Zero, arXiv 2212.09748, section 3.2).
        """
        generator = torch.Generator().manual_seed(seed)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if "_mod." in name or name in {"norm_out.linear", "proj_out"}:
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Sequence[Tensor],
        encoder_hidden_states_mask: Tensor | None,
        timestep: Tensor,
        img_shapes: Sequence[tuple[int, int, int]],
    ) -> Tensor:
        """The padded call of the released code.

        Args:
            hidden_states: image tokens [B, h·w, C].
            encoder_hidden_states: text features, a tensor [B, S, E] per layer; S may be 0.
            encoder_hidden_states_mask: bool [B, S], True where a token counts, padding on the right. None: all count.
            timestep: [B] in [0, 1].
            img_shapes: [(1, h, w)], shared by the whole batch.

        Returns:
            velocity [B, h·w, C].

        Raises:
            ValueError: the padding is not on the right.
        """
        size, text_length = hidden_states.shape[0], encoder_hidden_states[0].shape[1]
        _, height, width = img_shapes[0]
        mask_BS = encoder_hidden_states_mask
        if mask_BS is None:
            mask_BS = torch.ones(size, text_length, dtype=torch.bool, device=hidden_states.device)
        mask_BS = mask_BS.bool()
        lengths = mask_BS.sum(-1).tolist()
        if any(not bool(row[:length].all()) for row, length in zip(mask_BS, lengths, strict=True)):
            raise ValueError("the text mask must be True on the left and False on the right")
        velocity_NC = self.forward_ragged(
            RaggedBatch(
                image=hidden_states.flatten(0, 1),
                text=[layer[mask_BS] for layer in encoder_hidden_states],
                image_offsets=offsets_of([height * width] * size),
                text_offsets=offsets_of(lengths),
                grids=torch.tensor([[height, width]] * size),
                timestep=timestep,
            )
        )
        return velocity_NC.view(size, height * width, -1)


class Block(nn.Module):
    """A dual-stream block: joint attention and two gated MLPs, modulated by the timestep."""

    def __init__(self, dim: int, heads: int, head_dim: int, *, is_last: bool):
        super().__init__()
        self.is_last = is_last
        self.attn = JointAttention(dim, heads, head_dim)
        # Index 0 of these is a SiLU without parameters: the released keys are img_mod.1 and txt_mod.1.
        self.img_mod = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.txt_mod = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.img_norm1, self.img_norm2 = RMSNorm(dim, eps=1e-6), RMSNorm(dim, eps=1e-6)
        self.txt_norm1, self.txt_norm2 = RMSNorm(dim, eps=1e-6), RMSNorm(dim, eps=1e-6)
        self.img_mlp = GatedMLP(dim)
        self.txt_mlp = GatedMLP(dim)

    def forward(
        self,
        txt_TD: Tensor,
        img_ND: Tensor,
        temb_GD: Tensor,
        rope_MP: Tensor,
        text: Segments,
        image: Segments,
        joint: AttentionPlan,
        attention: AttentionBackend,
    ) -> tuple[Tensor, Tensor]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.img_mod(temb_GD).chunk(6, dim=-1)
        t_shift1, t_scale1, t_gate1, t_shift2, t_scale2, t_gate2 = self.txt_mod(temb_GD).chunk(6, dim=-1)
        img_attn_ND, txt_attn_TD = self.attn(
            image.modulate(self.img_norm1(img_ND), shift1, scale1 + 1),
            text.modulate(self.txt_norm1(txt_TD), t_shift1, t_scale1 + 1),
            rope_MP,
            joint,
            attention,
            text_out=not self.is_last,
        )
        img_ND = image.add_gated(img_ND, gate1, img_attn_ND)
        img_ND = image.add_gated(
            img_ND, gate2, self.img_mlp(image.modulate(self.img_norm2(img_ND), shift2, scale2 + 1))
        )
        if txt_attn_TD is not None:
            txt_TD = text.add_gated(txt_TD, t_gate1, txt_attn_TD)
            update_TD = self.txt_mlp(text.modulate(self.txt_norm2(txt_TD), t_shift2, t_scale2 + 1))
            txt_TD = text.add_gated(txt_TD, t_gate2, update_TD)
        return txt_TD, img_ND


class JointAttention(nn.Module):
    """Attention over a segment's image and text tokens together, with weights per stream and QK-norm."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k = RMSNorm(head_dim, eps=1e-6), RMSNorm(head_dim, eps=1e-6)
        self.norm_added_q, self.norm_added_k = RMSNorm(head_dim, eps=1e-6), RMSNorm(head_dim, eps=1e-6)
        # Rows: all of q, then k, then v; each head after head.
        self.img_qkv = nn.Linear(dim, 3 * dim)
        self.txt_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Identity()])
        self.to_add_out = nn.Linear(dim, dim)

    def forward(
        self,
        img_ND: Tensor,
        txt_TD: Tensor,
        rope_MP: Tensor,
        joint: AttentionPlan,
        attention: AttentionBackend,
        *,
        text_out: bool,
    ) -> tuple[Tensor, Tensor | None]:
        # [N, 3·A·P] -> 3 × [N, A, P]
        q_img, k_img, v_img = self.img_qkv(img_ND).unflatten(-1, (3, self.heads, -1)).unbind(1)
        q_txt, k_txt, v_txt = self.txt_qkv(txt_TD).unflatten(-1, (3, self.heads, -1)).unbind(1)
        q_MAP = rotate(torch.cat([self.norm_q(q_img), self.norm_added_q(q_txt)]), rope_MP)
        k_MAP = rotate(torch.cat([self.norm_k(k_img), self.norm_added_k(k_txt)]), rope_MP)
        out_MD = attention(q_MAP, k_MAP, torch.cat([v_img, v_txt]), joint).flatten(-2)
        img_ND, txt_TD = out_MD.split([len(img_ND), len(txt_TD)])
        return self.to_out[0](img_ND), self.to_add_out(txt_TD) if text_out else None


class GatedMLP(nn.Module):
    """SwiGLU without biases; the hidden width is int(dim / 3 · 8), in float arithmetic as released."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = int(dim / 3 * 8)
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x_ND)) * self.w3(x_ND))


class TimestepEmbedding(nn.Module):
    """Sinusoid and a two-layer MLP; the nesting gives the released keys."""

    def __init__(self, dim: int):
        super().__init__()
        self.timestep_embedder = nn.Module()
        self.timestep_embedder.linear_1 = nn.Linear(TIMESTEP_WIDTH, dim)
        self.timestep_embedder.linear_2 = nn.Linear(dim, dim)

    def forward(self, timestep_G: Tensor, dtype: torch.dtype) -> Tensor:
        embedder: Any = self.timestep_embedder
        return embedder.linear_2(F.silu(embedder.linear_1(timestep_embedding(timestep_G).to(dtype))))


class OutputNorm(nn.Module):
    """LayerNorm without weights, modulated; here the order is scale, shift."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, x_ND: Tensor, temb_GD: Tensor, image: Segments) -> Tensor:
        scale_GD, shift_GD = self.linear(F.silu(temb_GD)).chunk(2, dim=-1)
        return image.modulate(F.layer_norm(x_ND, x_ND.shape[-1:], eps=1e-6), shift_GD, scale_GD + 1)


def timestep_embedding(timestep_G: Tensor) -> Tensor:
    """[cos | sin] of 1000·t·10000^(-k/128), k = 0…127: float32 [G, 256], or float64 for a float64 timestep."""
    exact = torch.promote_types(timestep_G.dtype, torch.float32)
    half = TIMESTEP_WIDTH // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep_G.device) / half
    # The order of these products is the released one: at 1000·t a float32 has only four digits after the point.
    angle_GK = 1000.0 * (timestep_G.to(exact)[:, None] * torch.exp(-math.log(10_000.0) * exponent).to(exact))
    return torch.cat([angle_GK.cos(), angle_GK.sin()], dim=-1)


def rope_table(grids: Tensor, text_offsets: Tensor, axes: Sequence[int]) -> Tensor:
    """Rotary positions of the joint buffer, all image tokens and then all text tokens: complex64 [M, 1, P/2].

    Height and width are centred (n rows have positions -(n - n//2) … n//2 - 1), the frame is 0. Text starts just
    beyond the image's positive corner, at max(h//2, w//2), and runs upward with the same index on all three axes.

    Args:
        grids: [G, 2], height and width of each segment in tokens.
        text_offsets: int32 [G+1].
        axes: channels for frame, height, width.
    """
    grids, offsets = grids.long(), text_offsets.long()
    area_G = grids.prod(-1)
    inside_N = torch.arange(int(area_G.sum())) - torch.repeat_interleave(area_G.cumsum(0) - area_G, area_G)
    height_N, width_N = torch.repeat_interleave(grids, area_G, dim=0).unbind(-1)
    row_N = inside_N // width_N - (height_N - height_N // 2)
    column_N = inside_N % width_N - (width_N - width_N // 2)
    # Text token number i of all stands at (start of its segment's text) + (i - where that text begins).
    start_G = (grids // 2).amax(-1) - offsets[:-1]
    text_T = torch.arange(int(offsets[-1])) + torch.repeat_interleave(start_G, offsets.diff())
    image_N3 = torch.stack([torch.zeros_like(row_N), row_N, column_N], dim=-1)
    position_M3 = torch.cat([image_N3, text_T[:, None].expand(-1, 3)]).float()
    angles = [
        position_M3[:, axis, None] * (1.0 / ROPE_THETA ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
        for axis, size in enumerate(axes)
    ]
    angle_MP = torch.cat(angles, dim=-1)[:, None]
    return torch.polar(torch.ones_like(angle_MP), angle_MP)


def rotate(x_MAP: Tensor, rope_MP: Tensor) -> Tensor:
    """Rotate adjacent channel pairs (2k, 2k+1), in float32 at least."""
    exact = torch.promote_types(x_MAP.dtype, torch.float32)
    pairs = torch.view_as_complex(x_MAP.to(exact).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope_MP).flatten(-2).to(x_MAP.dtype)


def build(
    config: LensModelConfig, *, in_channels: int, enc_hidden_dim: int, num_text_layers: int
) -> LensTransformer2DModel:
    """The denoiser that a config describes, for an autoencoder's channels and a text encoder's width and layers."""
    fields = config.architecture()
    return LensTransformer2DModel(
        **fields,
        in_channels=in_channels,
        out_channels=in_channels // fields["patch_size"] ** 2,
        enc_hidden_dim=enc_hidden_dim,
        selected_layer_index=range(num_text_layers),
    )
