"""A causal language model as a text encoder: the hidden states of some of its layers are the features.

Suffixes: T kept tokens of all prompts, B prompts of one run, S tokens of the longest of them, E width.

A decoder looks back only. So prompts are padded on the right, where no real token ever sees the padding; the layers
behind the last one that is asked for are dropped; and what stands before every prompt is computed once, as keys and
values that each run begins with.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lens_core.diffusion.text_encoders.causal_lm.pretrained import PretrainedFiles, decoder_layers, one_line
from lens_core.diffusion.text_encoders.causal_lm.tokens import PromptTokens
from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from lens_core.config.base import ComponentConfig
    from lens_core.diffusion.text_encoders.causal_lm.config import CausalLMConfig

__all__ = ["CausalLMEncoder", "FrozenLanguageModel"]

TOKENS_PER_RUN = 16_384
"""How many tokens, padding included, go through the model at once; more prompts take several runs."""


class FrozenLanguageModel(nn.Module):
    """Prompts to the outputs of chosen decoder layers, without the final norm. Frozen, always in evaluation mode.

    Args:
        config: what it was made from.
        files: where the weights lie; they are loaded.
        layers: which decoder layers, counted from 0, in the order of the features.
        tokens: the template and the tokenizer.
        dtype: of weights and features; None keeps that of the files.

    Raises:
        ArtifactError: files are missing or damaged.
        ConfigError: the model has no such layer.
    """

    trainable = False
    template: dict[str, str] | None = None
    """What a model folder's `lens.json` says under `template`."""

    def __init__(
        self,
        config: ComponentConfig,
        *,
        files: PretrainedFiles,
        layers: Sequence[int],
        tokens: PromptTokens,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        self.config, self.files, self.tokens, self.layers = config, files, tokens, tuple(layers)
        self.model = files.load_model(dtype=dtype)
        self.width: int = self.model.config.get_text_config().hidden_size
        self.num_layers = len(self.layers)
        found = decoder_layers(self.model)
        deepest = max(self.layers)
        if deepest >= len(found):
            raise ConfigError(f"layers: there is no layer {deepest}; {files.model} has 0 to {len(found) - 1}")
        del found[deepest + 1 :]
        self._chosen = [found[index] for index in self.layers]
        self._prefix_cache: tuple[Any, Any] | None = None
        self.eval()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without the prefix that is dropped from the features; none for an empty text."""
        return self.tokens(texts)

    @torch.no_grad()
    def forward(self, ids_T: Tensor, offsets: Tensor) -> list[Tensor]:
        """Features: one tensor [T, E] per layer, on the model's device.

        Args:
            ids_T: token ids of all prompts, one after another.
            offsets: int32 [G+1], where each prompt begins.
        """
        starts, lengths = offsets.tolist(), offsets.diff().tolist()
        weight = self.model.get_input_embeddings().weight
        prompts = ids_T.to(weight.device).split(lengths)
        features = [weight.new_zeros(len(ids_T), self.width) for _ in self.layers]
        for group in _groups(lengths):
            ids_BS = pad_sequence([prompts[index] for index in group], batch_first=True)
            for feature_TE, hidden_BSE in zip(features, self._run(ids_BS), strict=True):
                for index, hidden_SE in zip(group, hidden_BSE, strict=True):
                    feature_TE[starts[index] : starts[index + 1]] = hidden_SE[: lengths[index]]
        return features

    def training_flops(self, lengths: Sequence[int]) -> float:
        """0: nothing here is trained."""
        return 0.0

    def save(self, folder: Path) -> None:
        """Write `text_encoder/` and `tokenizer/` of a model folder: copies of what was loaded."""
        self.files.copy_to(folder)

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays in evaluation mode, whatever `mode` says."""
        return super().train(False)

    def _run(self, ids_BS: Tensor) -> list[Tensor]:
        """The chosen layers' outputs [B, S, E] for prompts that follow the prefix."""
        kept: dict[int, Tensor] = {}

        def keep(index: int) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                kept[index] = output[0] if isinstance(output, tuple) else output

            return hook

        cache = self._after_prefix(len(ids_BS))
        handles = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(self._chosen)]
        try:
            self.model(input_ids=ids_BS, past_key_values=cache, use_cache=cache is not None)
        finally:
            for handle in handles:
                handle.remove()
        return [kept[index] for index in range(self.num_layers)]

    def _after_prefix(self, count: int) -> Any:
        """The prefix's keys and values, for `count` prompts; a run writes into them, so each gets its own."""
        if not self.tokens.prefix:
            return None
        weight = self.model.get_input_embeddings().weight
        key = (weight.device, weight.dtype)
        if self._prefix_cache is None or self._prefix_cache[0] != key:
            prefix_1S = torch.tensor([self.tokens.prefix], device=weight.device)
            self._prefix_cache = key, self.model(input_ids=prefix_1S, use_cache=True).past_key_values
        cache = copy.deepcopy(self._prefix_cache[1])
        cache.batch_repeat_interleave(count)
        return cache


class CausalLMEncoder(FrozenLanguageModel):
    """Any causal language model that transformers knows, such as Qwen3."""

    @classmethod
    def fit(cls, config: CausalLMConfig, captions: Iterable[str], *, seed: int = 0) -> CausalLMEncoder:
        """The pretrained encoder to train a denoiser with, from `config.path`; captions and seed change nothing.

        Raises:
            ConfigError: there is no path, or it leads nowhere.
            ArtifactError: the files there are damaged.
        """
        return cls._load(config, PretrainedFiles.find(config.path)[0], dtype=None)

    @classmethod
    def from_folder(
        cls, config: CausalLMConfig, folder: Path, *, template: Mapping[str, str] | None, dtype: torch.dtype | None
    ) -> CausalLMEncoder:
        """The encoder of a model folder; its template is in its config, so `template` plays no part.

        Raises:
            ArtifactError: files are missing or damaged.
        """
        return cls._load(config, PretrainedFiles.of_model_folder(folder), dtype=dtype)

    @classmethod
    def _load(cls, config: CausalLMConfig, files: PretrainedFiles, *, dtype: torch.dtype | None) -> CausalLMEncoder:
        before, _, after = config.template.partition("{prompt}")
        tokens = PromptTokens(
            files.load_tokenizer(),
            before=before,
            after=after,
            drop_prefix=config.drop_prefix,
            max_tokens=config.max_tokens,
        )
        encoder = cls(config, files=files, layers=config.layers, tokens=tokens, dtype=dtype)
        _check_causal(encoder)
        return encoder


def _check_causal(encoder: CausalLMEncoder) -> None:
    """Any name can stand in a config; a model that looks ahead would see the padding, and with it the neighbours."""
    try:
        one, two = (encoder(torch.arange(n), torch.tensor([0, n]))[-1][0].float() for n in (1, 2))
    except (TypeError, ValueError, AttributeError) as error:
        told = one_line(error)
        raise ConfigError(f"{encoder.files.model} cannot be run as a causal language model: {told}") from error
    if (one - two).abs().max() > 0.05 * one.abs().max():
        raise ConfigError(f"{encoder.files.model} is no causal language model: its tokens see what follows them")


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the prompts that run together: of similar length, so that little is padding."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not lengths[index]:
            break
        if group and (len(group) + 1) * lengths[group[0]] > TOKENS_PER_RUN:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
