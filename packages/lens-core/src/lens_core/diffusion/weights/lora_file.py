"""What a LoRA file says, in whatever words its trainer uses.

Suffixes: O output and I input channels of a linear, R rank.

A LoRA adds (alpha / rank) · B A to the weight of a linear. Trainers agree on that and on little else:

    transformer.transformer_blocks.0.attn.img_qkv.lora_A.weight         diffusers, OneTrainer
    diffusion_model.transformer_blocks.0.attn.img_qkv.lora_A.weight     ai-toolkit, ComfyUI
    base_model.model.transformer_blocks.0.attn.img_qkv.lora_A.weight    peft; in memory lora_A.default.weight
    transformer_blocks.0.attn.img_qkv.lora_down.weight, …alpha          bare, in kohya's older words
    lora_unet_transformer_blocks_0_attn_img_qkv.lora_down.weight        kohya, musubi-tuner

Underscored names are compared with the module's own names, since no rule tells which underscore was a dot. Alpha is
a tensor beside A and B, else what peft's `adapter_config.json` or diffusers' metadata say, else the rank.

Whatever a file holds that a module has no place for is an error, not a warning: a LoRA that fits by half draws
pictures that nobody trained.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lens_core.diffusion.weights.stored import SafetensorsFile
from lens_core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Factors", "read_lora"]

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
DIFFUSERS_METADATA = "lora_adapter_metadata"

_FACTOR = re.compile(
    r"(?P<target>.+?)[._](?P<factor>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(\.[^.]+)?\.weight"
)
_ALPHA = re.compile(r"(?P<target>.+)\.alpha")
_DOWN = {"lora_A", "lora_down", "lora.down"}
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "net.")
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
_TEXT = re.compile(r"(base_model\.model\.)?(text_encoders?\w*|text_model|cond_stage_model|te\d?)\.|lora_te\d?_.*")
_OTHER_METHODS = {
    "DoRA": re.compile(r".*\.(dora_scale|lora_magnitude_vector)(\..*)?"),
    "LoKr": re.compile(r".*\.lokr_\w+(\..*)?"),
    "LoHa": re.compile(r".*\.hada_\w+(\..*)?"),
    "a convolution's LoRA": re.compile(r".*\.lora_mid\..*"),
    "whole differences of weights": re.compile(r".*\.(diff|diff_b|set_weight)"),
    "biases of its own": re.compile(r".*\.lora_(B|up)(\.[^.]+)?\.bias"),
}
# Other initialisations change the weights under the LoRA, which a file of the LoRA alone does not bring.
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_MOST_CONFIG_BYTES = 2**20


@dataclass(frozen=True)
class Factors:
    """A linear's share of a LoRA: it adds (alpha / rank) · up @ down to the weight."""

    down_RI: Tensor
    up_OR: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """How many rows A has."""
        return self.down_RI.shape[0]


@dataclass(frozen=True)
class _Config:
    """What stands beside the weights about alpha; patterns are names of modules, or the ends of names."""

    alpha: float | None = None
    patterns: Mapping[str, float] | None = None
    square_root: bool = False  # peft's rslora: alpha is over the square root of the rank

    def alpha_of(self, target: str, rank: int) -> float:
        alpha = float(rank) if self.alpha is None else self.alpha
        for pattern, value in (self.patterns or {}).items():
            if target == pattern or target.endswith("." + pattern):
                alpha = value
                break
        return alpha * math.sqrt(rank) if self.square_root else alpha


def read_lora(source: Path | str | Mapping[str, Tensor], linears: Mapping[str, nn.Linear]) -> dict[str, Factors]:
    """The factors of a LoRA, by the name of the linear that they belong to.

    Args:
        source: a .safetensors file, a folder that peft or diffusers wrote, or tensors by the names that a file has.
        linears: the linears of the module it is for.

    Raises:
        ArtifactError: the file is damaged, or holds anything that these linears have no place for; the message names
            the keys.
        ConfigError: there is no such file, or it is no .safetensors file.
    """
    if isinstance(source, Mapping):
        return _factors(dict(source), _Config(), linears, "the LoRA")
    file, config = _open(Path(source).expanduser())
    tensors = {name: file.read(name) for name in file.tensors}
    return _factors(tensors, config, linears, str(file.path))


def _factors(
    tensors: Mapping[str, Tensor], config: _Config, linears: Mapping[str, nn.Linear], where: str
) -> dict[str, Factors]:
    parts = _sorted_parts(tensors, linears, where)
    found = {}
    for target, keys in parts.items():
        for part, what in (("down", "lora_A (or lora_down)"), ("up", "lora_B (or lora_up)")):
            if part not in keys:
                raise ArtifactError(f"{where}: {target!r} has no {what} to {next(iter(keys.values()))!r}")
        down_RI, up_OR = tensors[keys["down"]], tensors[keys["up"]]
        rows, columns = linears[target].weight.shape
        if down_RI.ndim != 2 or down_RI.shape[1] != columns or 0 in down_RI.shape:
            raise ArtifactError(f"{where}: {keys['down']!r} has shape {tuple(down_RI.shape)}, not (rank, {columns})")
        rank = down_RI.shape[0]
        if up_OR.shape != (rows, rank):
            raise ArtifactError(f"{where}: {keys['up']!r} has shape {tuple(up_OR.shape)}, not ({rows}, {rank})")
        alpha = config.alpha_of(target, rank)
        if "alpha" in keys:
            if tensors[keys["alpha"]].numel() != 1:
                raise ArtifactError(f"{where}: {keys['alpha']!r} is no single number")
            alpha = float(tensors[keys["alpha"]].reshape(()))
        for key in keys.values():
            if key != keys.get("alpha") and not tensors[key].is_floating_point():
                raise ArtifactError(f"{where}: {key!r} is stored as {tensors[key].dtype}: no quantised LoRA is read")
            if not torch.isfinite(tensors[key].float()).all():
                raise ArtifactError(f"{where}: {key!r} has values that are not finite: its training went astray")
        found[target] = Factors(down_RI, up_OR, alpha)
    return found


def _sorted_parts(
    keys: Iterable[str], linears: Mapping[str, nn.Linear], where: str
) -> dict[str, dict[Literal["down", "up", "alpha"], str]]:
    """By linear, which key is which of its factors. Every key must have its place."""
    underscored: dict[str, list[str]] = defaultdict(list)
    for name in linears:
        underscored[name.replace(".", "_")].append(name)
    parts: dict[str, dict[Literal["down", "up", "alpha"], str]] = defaultdict(dict)
    homeless, strange = [], []
    for key in keys:
        match = _FACTOR.fullmatch(key) or _ALPHA.fullmatch(key)
        if match is None:
            strange.append(key)
            continue
        target = _target(match["target"], linears, underscored)
        if target is None:
            homeless.append(key)
            continue
        factor = match.groupdict().get("factor")
        part: Literal["down", "up", "alpha"] = "alpha" if factor is None else "down" if factor in _DOWN else "up"
        if part in parts[target]:
            raise ArtifactError(f"{where}: {parts[target][part]!r} and {key!r} are the same factor of {target!r}")
        parts[target][part] = key
    if homeless or strange or not parts:
        raise ArtifactError(f"{where} {_misfit(homeless, strange, list(parts), list(linears))}")
    return dict(parts)


def _target(name: str, linears: Mapping[str, nn.Linear], underscored: Mapping[str, list[str]]) -> str | None:
    """The linear that a name means, or None."""
    stem = name
    while stem not in linears:
        shorter = next((stem.removeprefix(prefix) for prefix in _PREFIXES if stem.startswith(prefix)), None)
        if shorter is None:
            break
        stem = shorter
    else:
        return stem
    flat = next((stem.removeprefix(prefix) for prefix in _UNDERSCORED if stem.startswith(prefix)), None)
    meant = underscored.get(flat, []) if flat else []
    return meant[0] if len(meant) == 1 else None


def _misfit(homeless: list[str], strange: list[str], matched: list[str], linears: list[str]) -> str:
    """Why a file does not fit a model, as the second half of a sentence whose subject is the file."""
    if not (homeless or strange):
        return "is empty: it holds no LoRA"
    for method, pattern in _OTHER_METHODS.items():
        if found := [key for key in strange if pattern.fullmatch(key)]:
            return f"holds {method} ({_some(found)}), and only plain LoRA is read"
    text = [key for key in homeless + strange if _TEXT.match(key)]
    if text and not matched and len(text) == len(homeless + strange):
        return f"is a LoRA of a text encoder alone ({_some(text)}): it has nothing for this model"
    if text and len(text) == len(homeless + strange):
        return f"is a LoRA of a text encoder too ({_some(text)}), and this model's encoder takes none"
    if not homeless and not matched:
        return f"holds no LoRA: it has {_some(strange)}"
    if not matched:
        return f"fits nothing in this model: it has {_some(homeless)}; the model has {_some(linears, 3)}"
    return f"does not fit this model: nothing there is called {_some(homeless + strange)}"


def _some(names: list[str], most: int = 2) -> str:
    rest = len(names) - most
    return ", ".join(map(repr, names[:most])) + (f" (and {rest} more)" if rest > 0 else "")


def _open(path: Path) -> tuple[SafetensorsFile, _Config]:
    """The file that a path means, and what stands beside the weights about alpha."""
    if path.is_dir():
        names = [name for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS) if (path / name).is_file()]
        names = names or sorted(file.name for file in path.glob("*.safetensors"))
        if len(names) != 1:
            what = f"has {_some(names)}: say which" if names else "has no .safetensors file"
            raise ConfigError(f"{path} {what}")
        path = path / names[0]
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: only .safetensors files are read, for others can run code")
    file = SafetensorsFile(path)
    beside = path.with_name(PEFT_CONFIG)
    if path.name == PEFT_WEIGHTS and beside.is_file():
        return file, _read_config(_small_text(beside), str(beside))
    if DIFFUSERS_METADATA in file.metadata:
        return file, _read_config(file.metadata[DIFFUSERS_METADATA], f"{path}: its metadata {DIFFUSERS_METADATA!r}")
    return file, _Config()


def _small_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_CONFIG_BYTES).decode()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}") from error


def _read_config(text: str, where: str) -> _Config:
    """A `LoraConfig` of peft; in diffusers' pipelines its fields are under the name of the part that they are for."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{where} is not a JSON object")
    value = {key.removeprefix("transformer."): item for key, item in value.items()}
    if value.get("peft_type", "LORA") != "LORA":
        raise ArtifactError(f"{where} says {value['peft_type']!r}, and only LORA is read")
    if value.get("use_dora"):
        raise ArtifactError(f"{where} says 'use_dora', and only plain LoRA is read")
    if value.get("init_lora_weights") not in _HARMLESS_STARTS:
        raise ArtifactError(
            f"{where} says 'init_lora_weights' {value['init_lora_weights']!r}, which changed the model's own weights: "
            "let peft convert it (path_initial_model_for_weight_conversion)"
        )
    alpha, patterns = value.get("lora_alpha"), value.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(_is_number(n) for n in (alpha or 0, *patterns.values())):
        raise ArtifactError(f"{where}: 'lora_alpha' and 'alpha_pattern' are no numbers")
    config = _Config(alpha=alpha, square_root=bool(value.get("use_rslora")))
    return replace(config, patterns={_name(pattern, where): number for pattern, number in patterns.items()})


def _name(pattern: str, where: str) -> str:
    """The module's name that a pattern of peft spells. Peft takes any regex; a file's is never run."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        raise ArtifactError(f"{where}: the 'alpha_pattern' {pattern!r} is no name of a module")
    return name


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
