"""The Lens denoiser: a dual-stream transformer over ragged batches, key for key the released architecture.

Suffixes: N image tokens, T text tokens, M both, R rows of attention's joint layout; C token channels, E text width,
D model width; A heads, P channels per head; G segments; B, S padded batch and text length.

Source: Microsoft's Lens (arXiv 2605.21573) as its inference code defines it. Image and text have weights of their own
throughout and meet only in attention. The native form is `forward_ragged`; `forward` is the padded call of the
released code, as a thin adapter. Notable:

* modulation is computed once per segment and handed to its tokens;
* the last block's text half cannot reach the output: its parameters exist for the released layout, and are skipped;
* norms' variances, rotary positions and the timestep's sinusoid are computed in float32 whatever the weights are.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lens_core.diffusion.attention import AttentionBackend, AttentionPlan, attention_backend
from lens_core.diffusion.attention.heads import joint_heads
from lens_core.diffusion.attention.reference import ReferenceAttention
from lens_core.diffusion.device import layout_device, send
from lens_core.diffusion.flops import block_flops, denoiser_flops
from lens_core.diffusion.norms import RMSNorm
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.diffusion.segments import Segments
from lens_core.diffusion.weights.checkpoint import load_weights, save_weights
from lens_core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from lens_core.diffusion.models.lens.config import LensModelConfig

__all__ = ["LensTransformer2DModel", "Modulation", "build", "rope_table", "timestep_embedding"]

ROPE_THETA = 10_000.0
TIMESTEP_WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tokens of a batch lie: in each stream, in attention's joint rows, and on the rotary circle."""

    image: Segments
    text: Segments
    joint: AttentionPlan
    rope_RP2: Tensor


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """What a timestep does to every block, computed ahead: a third of the parameters is for nothing else.

    Args:
        blocks: for each block the rows [U, 6·D] of image and text, one for each of U timesteps.
        out: the rows [U, 2·D] of the output norm.
        rows_G: which of these rows each segment takes.
    """

    blocks: list[tuple[Tensor, Tensor]]
    out: Tensor
    rows_G: Tensor

    def take(self, rows_G: Tensor) -> Modulation:
        """The same rows, handed to other segments."""
        return replace(self, rows_G=rows_G.to(self.out.device))

    def to(self, device: torch.device) -> Modulation:
        """The same on another device."""
        blocks = [(image.to(device), text.to(device)) for image, text in self.blocks]
        return Modulation(blocks=blocks, out=self.out.to(device), rows_G=self.rows_G.to(device))

    def block(self, number: int) -> tuple[Tensor, Tensor]:
        """The rows [G, 6·D] of image and text of a block."""
        image_U6D, text_U6D = self.blocks[number]
        return image_U6D.index_select(0, self.rows_G), text_U6D.index_select(0, self.rows_G)


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
        self.attention: AttentionBackend = attention_backend("reference")
        self._attention_chosen = self._compiled = False
        self.gradient_checkpointing = False
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

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, subfolder: str = "", torch_dtype: torch.dtype | None = torch.float32
    ) -> LensTransformer2DModel:
        """The denoiser of a folder with `config.json` and weights, in evaluation mode.

        Args:
            folder: such as `model/transformer`.
            subfolder: "transformer", where `folder` is that of the whole model.
            torch_dtype: of the weights; None keeps what is stored.

        Raises:
            ArtifactError: a file is missing or damaged, or does not fit the config.
        """
        place = Path(folder, subfolder)
        try:
            fields = json.loads((place / "config.json").read_text(encoding="utf-8"))
            with torch.device("meta"):
                model = cls(**{name: value for name, value in fields.items() if not name.startswith("_")})
        except OSError as error:
            raise ArtifactError(f"{place / 'config.json'} cannot be read: {error.strerror or error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{place / 'config.json'} describes no Lens denoiser: {error}") from error
        load_weights(model, place, dtype=torch_dtype)
        return model.eval()

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json` and the weights, in shards where they are large."""
        place = Path(folder)
        save_weights(self, place)
        config = {"_class_name": type(self).__name__, **self.config}
        (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @overload
    def forward_ragged(self, batch: RaggedBatch, *, modulation: Modulation | None = None) -> Tensor: ...

    @overload
    def forward_ragged(
        self, batch: RaggedBatch, *, modulation: Modulation | None = None, taps: Container[int]
    ) -> tuple[Tensor, dict[int, Tensor]]: ...

    def forward_ragged(
        self, batch: RaggedBatch, *, modulation: Modulation | None = None, taps: Container[int] | None = None
    ) -> Tensor | tuple[Tensor, dict[int, Tensor]]:
        """Velocity [N, C] of every image token; a segment's depends on nothing but the segment.

        Args:
            batch: the segments.
            modulation: what `modulation` made of their timesteps; by default it is computed here.
            taps: blocks, the first being 1, whose image tokens [N, D] are wanted too; they come as a second result.
        """
        layout = self._layout(batch)
        img_ND = self.img_in(batch.image)
        txt_TD = self.txt_in(
            torch.cat([norm(layer) for norm, layer in zip(self.txt_norm, batch.text, strict=True)], dim=-1)
        )
        temb_GD = None if modulation else self.time_text_embed(batch.timestep, img_ND.dtype)
        tapped: dict[int, Tensor] = {}
        for number, block in enumerate(self.transformer_blocks):
            rows = modulation.block(number) if modulation else None
            arguments = (txt_TD, img_ND, temb_GD, rows, layout, self.attention)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                txt_TD, img_ND = checkpoint(block, *arguments, use_reentrant=False)
            else:
                txt_TD, img_ND = block(*arguments)
            if taps is not None and number + 1 in taps:
                tapped[number + 1] = img_ND
        out_G2D = modulation.out.index_select(0, modulation.rows_G) if modulation else None
        velocity_NC: Tensor = self.proj_out(self.norm_out(img_ND, temb_GD, out_G2D, layout.image))
        return velocity_NC if taps is None else (velocity_NC, tapped)

    def _layout(self, batch: RaggedBatch) -> Layout:
        """Where the tokens of a batch lie; made once for all steps over the same segments."""
        device = batch.image.device
        key = (type(self.attention), self.axes_dims_rope, device)
        if key not in batch.derived:
            lengths = batch.image_lengths, batch.text_lengths
            joint = self.attention.plan(*lengths, device=device)
            ropes = rope_table(batch.grids, batch.text_offsets, self.axes_dims_rope, device)
            batch.derived[key] = Layout(
                image=Segments(lengths[0], device),
                text=Segments(lengths[1], device),
                joint=joint,
                rope_RP2=torch.view_as_real(joint.join(*ropes)),
            )
        layout: Layout = batch.derived[key]
        return layout

    def modulation(self, timestep_U: Tensor) -> Modulation:
        """The modulation of some timesteps, computed where the modulation layers are.

        The result is for segments that have these timesteps in this order; see `Modulation.take`.
        """
        dtype, blocks = self.proj_out.weight.dtype, cast("list[Block]", list(self.transformer_blocks))
        temb_UD = self.time_text_embed(timestep_U.to(self.norm_out.linear.weight.device), dtype)
        return Modulation(
            blocks=[block.modulation(temb_UD) for block in blocks],
            out=self.norm_out.modulation(temb_UD),
            rows_G=torch.arange(len(timestep_U)),
        )

    def modulation_modules(self) -> list[nn.Module]:
        """The modules that `modulation` needs, and the blocks do not once they are given its result."""
        parts: list[nn.Module] = [self.time_text_embed, self.norm_out]
        block: Any
        for block in self.transformer_blocks:
            parts += [block.img_mod, block.txt_mod]
        return parts

    def set_attention_backend(self, name: str) -> None:
        """Attend by another backend, and keep to it: "reference", "varlen" or "flex".

        Raises:
            ConfigError: there is no such backend.
        """
        self._attention_chosen = True
        self._attend_by(attention_backend(name))

    def choose_attention(self, device: torch.device, dtype: torch.dtype) -> None:
        """Attend by what is fastest there, unless a backend was set: kernels for ragged batches where they exist."""
        if not self._attention_chosen:
            half = dtype in {torch.bfloat16, torch.float16}
            self._attend_by(attention_backend("varlen" if device.type == "cuda" and half else "reference"))

    def _attend_by(self, backend: AttentionBackend) -> None:
        self.attention = backend
        if self._compiled and isinstance(self.attention, ReferenceAttention):
            self.attention.set_apart()

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Keep only the blocks' inputs for the backward pass, and compute each block again there."""
        self.gradient_checkpointing = enabled

    def compile_blocks(self, **options: Any) -> None:
        """Compile each block for any number of tokens; they are alike, so this costs one compilation."""
        self._compiled = True
        self._attend_by(self.attention)
        for block in self.transformer_blocks:
            block.compile(dynamic=True, **options)

    def training_flops(
        self, image_lengths: Sequence[int], text_lengths: Sequence[int], *, text_gradient: bool
    ) -> float:
        """Matmul FLOPs of one training step on segments of these lengths; see `lens_core.diffusion.flops`.

        `text_gradient` makes no difference: the features pass a trained norm before the first product.
        """
        return denoiser_flops(self.config, image_lengths, text_lengths)

    def block_flops(self, image_lengths: Sequence[int], text_lengths: Sequence[int]) -> float:
        """Matmul FLOPs of the blocks' forward pass on segments of these lengths."""
        return block_flops(self.config, image_lengths, text_lengths)

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
        frames, height, width = img_shapes[0]
        if frames != 1 or any(tuple(shape) != tuple(img_shapes[0]) for shape in img_shapes):
            raise ValueError(f"img_shapes must be one (1, height, width) for the whole batch, not {list(img_shapes)}")
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

    def modulation(self, temb_GD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Shift, scale, gate of attention, then of the MLP [G, 6·D]; for image and for text."""
        return self.img_mod(temb_GD), self.txt_mod(temb_GD)

    def forward(
        self,
        txt_TD: Tensor,
        img_ND: Tensor,
        temb_GD: Tensor | None,
        rows: tuple[Tensor, Tensor] | None,
        layout: Layout,
        attention: AttentionBackend,
    ) -> tuple[Tensor, Tensor]:
        image, text = layout.image, layout.text
        img_G6D, txt_G6D = rows or self.modulation(temb_GD)
        shift1, scale1, gate1, shift2, scale2, gate2 = img_G6D.chunk(6, dim=-1)
        t_shift1, t_scale1, t_gate1, t_shift2, t_scale2, t_gate2 = txt_G6D.chunk(6, dim=-1)
        img_attn_ND, txt_attn_TD = self.attn(
            modulated(self.img_norm1, image, img_ND, shift1, scale1),
            modulated(self.txt_norm1, text, txt_TD, t_shift1, t_scale1),
            layout,
            attention,
            text_out=not self.is_last,
        )
        img_ND = image.add_gated(img_ND, gate1, img_attn_ND)
        update_ND = self.img_mlp(modulated(self.img_norm2, image, img_ND, shift2, scale2))
        img_ND = image.add_gated(img_ND, gate2, update_ND)
        if txt_attn_TD is not None:
            txt_TD = text.add_gated(txt_TD, t_gate1, txt_attn_TD)
            update_TD = self.txt_mlp(modulated(self.txt_norm2, text, txt_TD, t_shift2, t_scale2))
            txt_TD = text.add_gated(txt_TD, t_gate2, update_TD)
        return txt_TD, img_ND


def modulated(norm: RMSNorm, segments: Segments, x_ND: Tensor, shift_GD: Tensor, scale_GD: Tensor) -> Tensor:
    """norm(x)·(1 + scale) + shift; the norm's weight joins the segments' rows, which are fewer than the tokens."""
    return segments.norm_modulate(x_ND, shift_GD, norm.weight * (scale_GD + 1), norm.eps)


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
        layout: Layout,
        attention: AttentionBackend,
        *,
        text_out: bool,
    ) -> tuple[Tensor, Tensor | None]:
        weights = (
            torch.stack([self.norm_q.weight, self.norm_k.weight]),
            torch.stack([self.norm_added_q.weight, self.norm_added_k.weight]),
        )
        projections = self.img_qkv(img_ND), self.txt_qkv(txt_TD)
        joint = layout.joint
        heads = joint_heads(projections, weights, layout.rope_RP2, joint, eps=self.norm_q.eps)
        img_ND, txt_TD = joint.part(attention(heads, joint).flatten(-2))
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

    def modulation(self, temb_GD: Tensor) -> Tensor:
        """Scale and shift [G, 2·D]."""
        out: Tensor = self.linear(F.silu(temb_GD))
        return out

    def forward(self, x_ND: Tensor, temb_GD: Tensor | None, rows_G2D: Tensor | None, image: Segments) -> Tensor:
        if rows_G2D is None:
            assert temb_GD is not None
            rows_G2D = self.modulation(temb_GD)
        scale_GD, shift_GD = rows_G2D.chunk(2, dim=-1)
        return image.modulate(F.layer_norm(x_ND, x_ND.shape[-1:], eps=1e-6), shift_GD, scale_GD + 1)


def timestep_embedding(timestep_G: Tensor) -> Tensor:
    """[cos | sin] of 1000·t·10000^(-k/128), k = 0…127: float32 [G, 256], or float64 for a float64 timestep."""
    exact = torch.promote_types(timestep_G.dtype, torch.float32)
    half = TIMESTEP_WIDTH // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep_G.device) / half
    # The order of these products is the released one: at 1000·t a float32 has only four digits after the point.
    angle_GK = 1000.0 * (timestep_G.to(exact)[:, None] * torch.exp(-math.log(10_000.0) * exponent).to(exact))
    return torch.cat([angle_GK.cos(), angle_GK.sin()], dim=-1)


def rope_table(grids: Tensor, text_offsets: Tensor, axes: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rotary positions of all image tokens and of all text tokens: complex64 [N, 1, P/2], [T, 1, P/2].

    Height and width are centred (n rows have positions -(n - n//2) … n//2 - 1), the frame is 0. Text starts just
    beyond the image's positive corner, at max(h//2, w//2), and runs upward with the same index on all three axes.

    Args:
        grids: [G, 2], height and width of each segment in tokens.
        text_offsets: int32 [G+1].
        axes: channels for frame, height, width.
        device: of the table.
    """
    tokens, texts, made_on = int(grids.prod(-1).sum()), int(text_offsets[-1]), layout_device(device)
    grids, offsets = send(grids.long(), made_on), send(text_offsets.long(), made_on)
    area_G = grids.prod(-1)
    segment_N = torch.repeat_interleave(area_G, output_size=tokens)
    inside_N = torch.arange(tokens, device=made_on) - (area_G.cumsum(0) - area_G)[segment_N]
    height_N, width_N = grids[segment_N].unbind(-1)
    row_N = inside_N // width_N - (height_N - height_N // 2)
    column_N = inside_N % width_N - (width_N - width_N // 2)
    # Text token number i of all stands at (start of its segment's text) + (i - where that text begins).
    start_G = (grids // 2).amax(-1) - offsets[:-1]
    start_T = torch.repeat_interleave(start_G, offsets.diff(), output_size=texts)
    text_T = torch.arange(texts, device=made_on) + start_T
    image_N3 = torch.stack([torch.zeros_like(row_N), row_N, column_N], dim=-1)
    position_M3 = torch.cat([image_N3, text_T[:, None].expand(-1, 3)]).float()
    axis_P = torch.repeat_interleave(torch.tensor(axes) // 2)
    rate_P = torch.cat([1.0 / ROPE_THETA ** (torch.arange(0, size, 2, dtype=torch.float32) / size) for size in axes])
    angle_MP = (position_M3.index_select(1, send(axis_P, made_on)) * send(rate_P, made_on))[:, None]
    image, text = torch.polar(torch.ones_like(angle_MP), angle_MP).to(device).split([tokens, texts])
    return image, text


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
        selected_layer_index=config.selected_layer_index or range(num_text_layers),
    )
