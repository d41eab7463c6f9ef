"""Prompts rewritten by a causal language model in a folder. Safetensors only; no code of theirs is run.

The model's own marks (`<|im_start|>` and the like) are taken out of what a user wrote before the chat template is put
around it, so that no prompt can end its own turn.

Suffixes: B prompts of one run (always one), T tokens.
"""

from __future__ import annotations

import copy
import logging
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from lens_core.diffusion.device import pick_device
from lens_core.errors import ArtifactError, ConfigError
from lens_serve.rewriters.template import load_template, paragraph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_serve.rewriters.transformers_lm.config import TransformersLmConfig

__all__ = ["TransformersLmRewriter"]

_MODELS: Any = transformers.AutoModelForCausalLM
_TOKENIZERS: Any = transformers.AutoTokenizer
_FINAL = "<|channel|>final<|message|>"
"""Where gpt-oss says what it has thought out."""

_SHORT = {"enable_thinking": False, "reasoning_effort": "low"}
"""Asks the chat templates that know such words (Qwen3's, gpt-oss's) for little thinking; others ignore them."""

_log = logging.getLogger(__name__)

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class TransformersLmRewriter:
    """Asks the model about each prompt, one at a time, also when several threads call.

    In float32 on the CPU a seed gives the same words each time.

    Raises:
        ConfigError: there is no such folder or template.
        ArtifactError: the folder's model cannot be used.
        LensError: this machine does not have the device.
    """

    def __init__(self, config: TransformersLmConfig):
        self.config = config
        folder = Path(config.model).expanduser()
        if not folder.is_dir():
            raise ConfigError(
                f"there is no model in {config.model!r}; give the path of a folder on this machine", key="model"
            )
        self._template = load_template(config.template)
        self.template = self._template.id
        self._device = pick_device(config.device)
        self._tokenizer, model = _load(folder, config.dtype)
        self._model = model.to(self._device).eval()
        self._decoding = _decoding(self._model, self._tokenizer, config)
        if not _ids(self._decoding.eos_token_id):
            raise ArtifactError(f"{folder} names no eos_token_id, so that nobody could tell a whole answer from half")
        marks = sorted(self._tokenizer.get_added_vocab(), key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
        self._room = int(getattr(self._model.config.get_text_config(), "max_position_embeddings", 0) or 2**31)
        self._turn = threading.Lock()
        self._chat("a red circle")  # so that a template that does not fit shows now

    def rewrite(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        """One text per prompt, in order; one that is too long, or whose answer has no end, is unchanged."""
        return [self._rewritten(prompt, seed) if prompt.strip() else prompt for prompt in prompts]

    def _rewritten(self, prompt: str, seed: int) -> str:
        # A blank keeps what stands around a mark from becoming one.
        chat = self._chat(self._marks.sub(" ", prompt))
        inputs = self._tokenizer(chat, add_special_tokens=False, return_tensors="pt")
        used = inputs["input_ids"].shape[1]
        if used + self.config.max_new_tokens > self._room:
            _log.warning("a prompt of %d tokens is too long to be rewritten", used)
            return prompt
        with self._turn:
            ids = self._generate(inputs, seed)[used:]
        end = next((place for place, token in enumerate(ids) if token in _ids(self._decoding.eos_token_id)), None)
        if end is None:
            _log.warning("a rewritten prompt had no end after %d tokens", len(ids))
            return prompt
        answer = self._tokenizer.decode(ids[:end], skip_special_tokens=False).rpartition(_FINAL)[2]
        # "</think>" may be a mark of the tokenizer's, so it is looked for before marks are taken out.
        return self._marks.sub(" ", paragraph(answer)).strip() or prompt

    def _chat(self, prompt: str) -> str:
        """The chat template around the rules and the prompt."""
        system, user = self._template.messages(prompt)
        try:
            return self._rendered([system, user])
        except ArtifactError:
            # Some templates know no system turn.
            return self._rendered([{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}])

    def _rendered(self, turns: list[dict[str, str]]) -> str:
        try:
            return self._tokenizer.apply_chat_template(  # type: ignore[no-any-return]
                turns, add_generation_prompt=True, tokenize=False, **_SHORT
            )
        except Exception as error:  # templates are programs
            raise ArtifactError(f"the model's chat template does not take the rules: {_one_line(error)}") from error

    @torch.inference_mode()
    def _generate(self, inputs: Any, seed: int) -> list[int]:
        """The ids of prompt and answer."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            ids_BT = self._model.generate(**inputs.to(self._device), generation_config=self._decoding)
        return ids_BT[0].tolist()  # type: ignore[no-any-return]


def _load(folder: Path, dtype: str) -> tuple[Any, Any]:
    """Tokenizer and model of a folder."""
    safely: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        tokenizer = _TOKENIZERS.from_pretrained(folder, **safely)
        model, loading = _MODELS.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **safely,
        )
    except Exception as error:
        # transformers raises what comes to hand: OSError, KeyError, ImportError, SafetensorError, …
        raise ArtifactError(f"{folder} holds no language model that can be used here: {_one_line(error)}") from error
    if loading["missing_keys"]:
        # transformers would fill them with random numbers.
        raise ArtifactError(f"{folder} lacks weights, such as {sorted(loading['missing_keys'])[0]!r}")
    if getattr(tokenizer, "chat_template", None) is None:
        raise ArtifactError(f"{folder} has no chat template: only models that follow instructions can rewrite")
    return tokenizer, model


def _decoding(model: Any, tokenizer: Any, config: TransformersLmConfig) -> Any:
    """The folder's own settings, such as its end tokens, with ours for what is to be chosen."""
    chosen = copy.deepcopy(model.generation_config)
    chosen.max_length = None
    chosen.max_new_tokens = config.max_new_tokens
    chosen.num_beams = chosen.num_return_sequences = 1
    chosen.do_sample = config.temperature > 0
    chosen.temperature = config.temperature or None
    chosen.top_p = chosen.top_k = chosen.min_p = None
    if chosen.eos_token_id is None:
        chosen.eos_token_id = tokenizer.eos_token_id
    if chosen.pad_token_id is None:
        chosen.pad_token_id = next(iter(_ids(chosen.eos_token_id)), None)
    return chosen


def _ids(value: int | list[int] | None) -> set[int]:
    return set() if value is None else {value} if isinstance(value, int) else set(value)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
