"""The files of a pretrained language model: find them, load them, copy them.

A frozen encoder is saved by copying what it was loaded from, byte for byte: quantised weights stay quantised, shards
stay shards. Safetensors only, and no code from a model's folder is ever run.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging
from transformers.utils.quantization_config import Mxfp4Config

from lens_core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["PretrainedFiles", "decoder_layers", "one_line"]

_MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "chat_template.json",
)
_TOLD_BY_LIBRARIES = (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError)


@dataclass(frozen=True)
class PretrainedFiles:
    """Where a language model lies on this machine.

    Args:
        model: the folder of its config and weights.
        tokenizer: the folder of its tokenizer; often the same.
    """

    model: Path
    tokenizer: Path

    @classmethod
    def of_model_folder(cls, folder: Path) -> PretrainedFiles:
        """The two folders inside a model folder."""
        return cls(folder / "text_encoder", folder / "tokenizer")

    @classmethod
    def find(cls, path: str | None) -> tuple[PretrainedFiles, Path]:
        """The files to train with, and the folder they are in.

        Args:
            path: a folder of a language model, a model folder that holds one, or a repository on the Hub, which is
                downloaded.

        Raises:
            ConfigError: it is neither, or cannot be downloaded.
        """
        if not path:
            raise ConfigError("path: say which pretrained text encoder to train with: a folder, or a name on the Hub")
        folder = Path(path).expanduser()
        if not folder.is_dir():
            folder = _download(path)
        inside = cls.of_model_folder(folder)
        return (inside if inside.model.is_dir() else cls(folder, folder)), folder

    def load_tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            ArtifactError: it is absent or damaged.
        """
        if not self.tokenizer.is_dir():
            raise ArtifactError(f"{self.tokenizer} does not exist: the text encoder needs its tokenizer")
        try:
            return AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # tokenizers raises nothing more precise
            raise ArtifactError(f"{self.tokenizer} holds no tokenizer that can be read: {one_line(error)}") from error

    def load_model(self, *, dtype: torch.dtype | None) -> Any:
        """The decoder without its head, frozen, on the CPU and in evaluation mode.

        Args:
            dtype: of the weights; None keeps that of the files. MXFP4 weights stay as they are where this machine has
                a GPU (if transformers finds the kernels for it); on a CPU they are expanded.

        Raises:
            ArtifactError: files are missing, damaged, or do not fit each other; the message names the tensor.
        """
        if not (self.model / "config.json").is_file():
            raise ArtifactError(f"{self.model} holds no language model (it has no config.json)")
        for file in sorted(self.model.glob("*.safetensors")):
            _check_complete(file)
        try:
            config = AutoConfig.from_pretrained(self.model, trust_remote_code=False, local_files_only=True)
            with _quietly():
                model, told = AutoModel.from_pretrained(
                    self.model,
                    config=config,
                    dtype=dtype or "auto",
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused below, by name
                    **_how(config),
                )
        except _TOLD_BY_LIBRARIES as error:
            raise ArtifactError(f"{self.model} cannot be loaded: {one_line(error)}") from error
        wrong = [f"{key!r} is missing" for key in sorted(told["missing_keys"])] + [
            f"{key!r} has shape {tuple(found)}, not {tuple(own)}" for key, found, own in sorted(told["mismatched_keys"])
        ]
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise ArtifactError(f"the weights in {self.model} do not fit its config: {wrong[0]}{more}")
        return model.requires_grad_(False).eval()

    def copy_to(self, folder: Path) -> None:
        """Write the files into a model folder.

        Raises:
            ArtifactError: they are not there any more.
        """
        target = PretrainedFiles.of_model_folder(folder)
        _copy(self.model, target.model, _MODEL_FILES)
        _copy(self.tokenizer, target.tokenizer, _TOKENIZER_FILES)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The list of a model's decoder layers.

    Raises:
        ConfigError: this architecture has none that could be found.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ConfigError(f"{type(model).__name__} has no list of decoder layers to take features from")


def _how(config: Any) -> dict[str, Any]:
    """What must be said for an architecture, beyond the defaults of transformers."""
    options: dict[str, Any] = {}
    if config.model_type == "gpt_oss":
        options["attn_implementation"] = "eager"  # its attention sinks have no other kernel that comes with torch
    quantised = getattr(config, "quantization_config", None) or {}
    if quantised.get("quant_method") == "mxfp4" and not torch.cuda.is_available():
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    return options


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without bars and reports of what every checkpoint has, such as a head that a text encoder does not need."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _download(name: str) -> Path:
    names = (*_MODEL_FILES, *_TOKENIZER_FILES)
    inside = [f"{part}/{name}" for part in ("text_encoder", "tokenizer") for name in names]
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=["lens.json", *names, *inside],
                ignore_patterns=["original/*", "metal/*", "onnx/*", "transformer/*", "vae/*"],
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ConfigError(
            f"path: {name} is no folder here, and not to be had from the Hub: {one_line(error)}"
        ) from error


def _copy(source: Path, target: Path, patterns: Iterable[str]) -> None:
    files = sorted({file for pattern in patterns for file in source.glob(pattern)})
    if not files:
        raise ArtifactError(f"{source} is not there any more, so the text encoder cannot be saved")
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.resolve() != (target / file.name).resolve():
            shutil.copyfile(file, target / file.name)


def _check_complete(file: Path) -> None:
    try:
        with safe_open(file, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{file} is damaged or truncated: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """What a library says, on one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:200].rsplit(" ", 1)[0] + " …"
