"""A small text encoder, trained together with the denoiser: for toy worlds, tests and first experiments.

Suffixes: T text tokens of all prompts, R rows of the plan's layout, E width, A heads, P channels per head.

Its vocabulary is learned from the captions (byte-level byte pairs, so that any text has tokens), its features by the
denoiser's loss. Prompts are packed without padding, as everywhere.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn

from lens_core.diffusion.attention import AttentionPlan, attention_backend
from lens_core.diffusion.norms import RMSNorm
from lens_core.diffusion.weights.checkpoint import load_weights, save_weights
from lens_core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lens_core.diffusion.text_encoders.small.config import SmallTextEncoderConfig

__all__ = ["SmallTextEncoder", "learn_vocabulary"]

ATTENTION = attention_backend("reference")


class SmallTextEncoder(nn.Module):
    """Token and position embeddings, and a few transformer layers in which a prompt's tokens see each other.

    Args:
        config: its sizes.
        tokenizer: JSON of a `tokenizers` tokenizer; see `fit` for a fresh one.
    """

    num_layers = 1
    trainable = True

    def __init__(self, config: SmallTextEncoderConfig, *, tokenizer: str):
        super().__init__()
        self.config = config
        self.width = config.width
        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.embedding = nn.Embedding(self.tokenizer.get_vocab_size(), config.width)
        self.position = nn.Embedding(config.max_tokens, config.width)
        self.layers = nn.ModuleList(Layer(config.width, config.heads) for _ in range(config.layers))

    @classmethod
    def fit(cls, config: SmallTextEncoderConfig, captions: Iterable[str], *, seed: int = 0) -> SmallTextEncoder:
        """A fresh encoder whose vocabulary is learned from captions; the same for the same captions and seed."""
        encoder = cls(config, tokenizer=learn_vocabulary(captions, config.vocab_size))
        generator = torch.Generator().manual_seed(seed)
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02 if module is encoder.position else 1.0, generator=generator)
        return encoder

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; none for an empty one."""
        encodings = self.tokenizer.encode_batch([text.strip() for text in texts], add_special_tokens=False)
        return [encoding.ids[: self.config.max_tokens] for encoding in encodings]

    def forward(self, ids_T: Tensor, offsets: Tensor) -> list[Tensor]:
        """Features: one tensor [T, E].

        Args:
            ids_T: token ids of all prompts, one after another.
            offsets: int32 [G+1], where each prompt begins.
        """
        lengths = offsets.diff().tolist()
        plan = ATTENTION.plan(lengths, device=ids_T.device)
        position_T = torch.cat([torch.arange(length) for length in lengths]).to(ids_T.device)
        x_TE = self.embedding(ids_T) + self.position(position_T)
        for layer in self.layers:
            x_TE = layer(x_TE, plan)
        return [x_TE]

    def training_flops(self, lengths: Sequence[int]) -> float:
        """Forward and backward matmul FLOPs for prompts of these lengths; see `lens_core.diffusion.flops`."""
        e = self.width
        per_token = 2 * (4 * e * e + 3 * e * Layer.hidden(e))
        forward = sum(length * per_token + 4 * length * length * e for length in lengths)
        return 3.0 * len(self.layers) * forward

    def save(self, folder: Path) -> None:
        """Write `text_encoder/` of the model folder `folder`: its settings, tokenizer and weights."""
        own = folder / "text_encoder"
        save_weights(self, own, "model")
        settings = json.dumps(self.config.model_dump(mode="json"), indent=2)
        (own / "config.json").write_text(settings + "\n", encoding="utf-8")
        (own / "tokenizer.json").write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def from_folder(
        cls,
        config: SmallTextEncoderConfig,
        folder: Path,
        *,
        template: Mapping[str, str] | None = None,
        dtype: torch.dtype | None = None,
    ) -> SmallTextEncoder:
        """The encoder of a model folder; it has no use for a template.

        Raises:
            ArtifactError: the tokenizer or the weights are absent or damaged.
        """
        where = folder / "text_encoder" / "tokenizer.json"
        try:
            encoder = cls(config, tokenizer=where.read_text(encoding="utf-8"))
        except OSError as error:
            raise ArtifactError(f"{where} cannot be read: {error.strerror or error}") from error
        except Exception as error:  # tokenizers raises nothing more precise
            raise ArtifactError(f"{where} is damaged: {error}") from error
        load_weights(encoder, folder / "text_encoder", "model", dtype=dtype or torch.float32)
        return encoder


class Layer(nn.Module):
    """Pre-norm attention and a gated MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RMSNorm(width, eps=1e-6), RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.w1 = nn.Linear(width, self.hidden(width), bias=False)
        self.w3 = nn.Linear(width, self.hidden(width), bias=False)
        self.w2 = nn.Linear(self.hidden(width), width, bias=False)

    @staticmethod
    def hidden(width: int) -> int:
        """Width of the MLP."""
        return 2 * width

    def forward(self, x_TE: Tensor, plan: AttentionPlan) -> Tensor:
        rows = plan.join(self.qkv(self.norm1(x_TE)).unflatten(-1, (3, self.heads, -1)))
        heads = [section.unbind(1) for section in rows.split(plan.sections)]
        (attended_TE,) = plan.part(ATTENTION(heads, plan).flatten(-2))
        x_TE = x_TE + self.out(attended_TE)
        y_TE = self.norm2(x_TE)
        return x_TE + self.w2(F.silu(self.w1(y_TE)) * self.w3(y_TE))


def learn_vocabulary(captions: Iterable[str], vocab_size: int) -> str:
    """Byte-level byte pairs learned from captions, as the JSON of a `tokenizers` tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(captions, trainer=trainer)
    return str(tokenizer.to_str())
