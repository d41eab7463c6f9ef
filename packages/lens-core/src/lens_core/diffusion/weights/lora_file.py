"""What a LoRA file says, in whatever words its trainer uses.

Suffixes: O output and I input channels of a linear, R rank.

A LoRA adds (alpha / rank) · B A to the weight of a linear. Trainers agree on that and on little else:

    transformer.transformer_blocks.0.attn.img_qkv.lora_A.weight         diffusers, OneTrainer
    diffusion_model.transformer_blocks.0.attn.img_qkv.lora_A.weight     ai-toolkit, ComfyUI
    base_model.model.transformer_blocks.0.attn.img_qkv.lora_A.weight    peft; in memory lora_A.default.weight
    transformer_blocks.0.attn.img_qkv.lora_down.weight, …alpha          bare, in kohya's older words
    lora_unet_transformer_blocks_0_attn_img_qkv.lora_down.weight        kohya, musubi-tuner
    ….lora_magnitude_vector (peft, diffusers), ….dora_scale (LyCORIS)   makes a DoRA of it
    ….lokr_w1, ….lokr_w2_a, ….lokr_w2_b                                 LoKr: LyCORIS, peft, ComfyUI

A DoRA (arXiv 2402.09353) then brings each row of the sum to a length of its own, the magnitude. A LoKr
(arXiv 2309.14859) adds a Kronecker product, which is read as the LoRA that it is equal to: see `kronecker`.

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lens_core.diffusion.weights.kronecker import kronecker_factors
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
_OTHER_PART = re.compile(
    r"(?P<target>.+?)\.(?P<factor>alpha|dora_scale|lora_magnitude_vector(\.[^.]+)?(\.weight)?|lokr_w[12](_[ab])?(\.[^.]+)?)"
)
_PART_OF = {
    **dict.fromkeys(("lora_A", "lora_down", "lora.down"), "down"),
    **dict.fromkeys(("lora_B", "lora_up", "lora.up"), "up"),
    **dict.fromkeys(("dora_scale", "lora_magnitude_vector"), "magnitude"),
}
"""What a factor is called here; the others keep their name, as LoKr's do."""
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "net.")
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
_TEXT = re.compile(r"(base_model\.model\.)?(text_encoders?\w*|text_model|cond_stage_model|te\d?)\.|lora_te\d?_.*")
_OTHER_METHODS = {
    "a convolution's LoKr": re.compile(r".*\.lokr_t2(\..*)?"),
    "LoHa": re.compile(r".*\.hada_\w+(\..*)?"),
    "a convolution's LoRA": re.compile(r".*\.lora_mid\..*"),
    "whole differences of weights": re.compile(r".*\.(diff|diff_b|set_weight)"),
    "biases of its own": re.compile(r".*\.lora_(B|up)(\.[^.]+)?\.bias"),
}
# Other initialisations change the weights under the LoRA, which a file of the LoRA alone does not bring.
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_MOST_CONFIG_BYTES = 2**20

_Keys = dict[str, str]
"""Of a linear, the key of each of its factors: down, up, alpha, magnitude, or LoKr's own names."""


@dataclass(frozen=True)
class Factors:
    """A linear's share of a LoRA: it adds (alpha / rank) · up @ down to the weight.

    With a magnitude, as a DoRA has, each row of the sum is then brought to that length.
    """

    down_RI: Tensor
    up_OR: Tensor
    alpha: float
    magnitude_O: Tensor | None = None

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
    is_dora: bool = False
    rank: float | None = None  # of a LoKr only, whose factors need not show it
    rank_patterns: Mapping[str, float] | None = None

    def alpha_of(self, target: str, rank: int) -> float:
        alpha = _matching(self.patterns, target, float(rank) if self.alpha is None else self.alpha)
        return alpha * math.sqrt(rank) if self.square_root else alpha

    def lokr_scale(self, target: str, rank: int | None) -> float:
        """What a LoKr is multiplied by, where no alpha stands beside its factors."""
        if self.alpha is None or self.rank is None:
            return 1.0
        return _matching(self.patterns, target, self.alpha) / _matching(self.rank_patterns, target, self.rank)


def _matching(patterns: Mapping[str, float] | None, target: str, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if target == pattern or target.endswith("." + pattern):
            return value
    return default


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
    for keys in parts.values():
        for part, key in keys.items():
            if part != "alpha" and not tensors[key].is_floating_point():
                raise ArtifactError(f"{where}: {key!r} is stored as {tensors[key].dtype}: no quantised LoRA is read")
            if not torch.isfinite(tensors[key].float()).all():
                raise ArtifactError(f"{where}: {key!r} has values that are not finite: its training went astray")
        if "alpha" in keys and tensors[keys["alpha"]].numel() != 1:
            raise ArtifactError(f"{where}: {keys['alpha']!r} is no single number")
    found = {}
    for target, keys in parts.items():
        read = _lokr if any(part.startswith("lokr_") for part in keys) else _lora
        found[target] = read(tensors, keys, config, target, linears[target], where)
    plain = [target for target, factors in found.items() if factors.magnitude_O is None]
    if plain and (config.is_dora or len(plain) < len(found)):
        raise ArtifactError(f"{where} is a DoRA, but has no magnitude for {_some(plain)}")
    return found


def _lora(
    tensors: Mapping[str, Tensor], keys: _Keys, config: _Config, target: str, linear: nn.Linear, where: str
) -> Factors:
    for part, what in (("down", "lora_A (or lora_down)"), ("up", "lora_B (or lora_up)")):
        if part not in keys:
            raise ArtifactError(f"{where}: {target!r} has no {what} to {next(iter(keys.values()))!r}")
    down_RI, up_OR = tensors[keys["down"]], tensors[keys["up"]]
    rows, columns = linear.weight.shape
    if down_RI.ndim != 2 or down_RI.shape[1] != columns or 0 in down_RI.shape:
        raise ArtifactError(f"{where}: {keys['down']!r} has shape {tuple(down_RI.shape)}, not (rank, {columns})")
    rank = down_RI.shape[0]
    if up_OR.shape != (rows, rank):
        raise ArtifactError(f"{where}: {keys['up']!r} has shape {tuple(up_OR.shape)}, not ({rows}, {rank})")
    alpha = float(tensors[keys["alpha"]].reshape(())) if "alpha" in keys else config.alpha_of(target, rank)
    magnitude_O = None
    if "magnitude" in keys:
        magnitude = tensors[keys["magnitude"]]
        if magnitude.shape not in {(rows,), (rows, 1)}:
            shape = f"{tuple(magnitude.shape)}, not ({rows},)"
            raise ArtifactError(f"{where}: {keys['magnitude']!r} has shape {shape}: a length for each output is read")
        magnitude_O = magnitude.reshape(rows)
    return Factors(down_RI, up_OR, alpha, magnitude_O)


def _lokr(
    tensors: Mapping[str, Tensor], keys: _Keys, config: _Config, target: str, linear: nn.Linear, where: str
) -> Factors:
    factors = {part.removeprefix("lokr_"): tensors[key] for part, key in keys.items() if part.startswith("lokr_")}
    if others := keys.keys() - {"alpha"} - {f"lokr_{name}" for name in factors}:
        raise ArtifactError(f"{where}: {keys[min(others)]!r} is no part of a LoKr, which {target!r} has there")
    try:
        down_RI, up_OR, rank = kronecker_factors(factors, (linear.out_features, linear.in_features))
    except ValueError as error:
        raise ArtifactError(f"{where}: the LoKr of {target!r} {error}") from error
    if "alpha" in keys:  # where no factor shows a rank, trainers mean 1 whatever stands there
        scale = float(tensors[keys["alpha"]].reshape(())) / rank if rank else 1.0
    else:
        scale = config.lokr_scale(target, rank)
    return Factors(down_RI, up_OR, alpha=scale * down_RI.shape[0])


def _sorted_parts(keys: Iterable[str], linears: Mapping[str, nn.Linear], where: str) -> dict[str, _Keys]:
    """By linear, which key is which of its factors. Every key must have its place."""
    underscored: dict[str, list[str]] = defaultdict(list)
    for name in linears:
        underscored[name.replace(".", "_")].append(name)
    parts: dict[str, _Keys] = defaultdict(dict)
    homeless, strange = [], []
    for key in keys:
        match = _FACTOR.fullmatch(key) or _OTHER_PART.fullmatch(key)
        if match is None:
            strange.append(key)
            continue
        target = _target(match["target"], linears, underscored)
        if target is None:
            homeless.append(key)
            continue
        factor = match["factor"] if match["factor"] in _PART_OF else match["factor"].split(".")[0]
        part = _PART_OF.get(factor, factor)
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
            return f"holds {method} ({_some(found)}), which is not read"
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
    kind = value.get("peft_type", "LORA")
    if kind not in {"LORA", "LOKR"}:
        raise ArtifactError(f"{where} says {kind!r}, and only LORA and LOKR are read")
    if value.get("init_lora_weights") not in _HARMLESS_STARTS:
        raise ArtifactError(
            f"{where} says 'init_lora_weights' {value['init_lora_weights']!r}, which changed the model's own weights: "
            "let peft convert it (path_initial_model_for_weight_conversion)"
        )
    alpha_field = "alpha" if kind == "LOKR" else "lora_alpha"
    alpha, patterns = _numbers(value, alpha_field, "alpha_pattern", where)
    if kind == "LOKR":
        rank, rank_patterns = _numbers(value, "r", "rank_pattern", where)
        if any(number <= 0 for number in (1 if rank is None else rank, *rank_patterns.values())):
            raise ArtifactError(f"{where}: 'r' and 'rank_pattern' are no ranks")
        return _Config(alpha, patterns, rank=rank, rank_patterns=rank_patterns)
    return _Config(alpha, patterns, bool(value.get("use_rslora")), is_dora=bool(value.get("use_dora")))


def _numbers(value: Mapping[str, Any], field: str, pattern_field: str, where: str) -> tuple[Any, dict[str, float]]:
    """A number, and those that modules of some names have instead."""
    number, patterns = value.get(field), value.get(pattern_field) or {}
    if not isinstance(patterns, dict) or not all(_is_number(n) for n in (number or 0, *patterns.values())):
        raise ArtifactError(f"{where}: {field!r} and {pattern_field!r} are no numbers")
    return number, {_name(pattern, pattern_field, where): own for pattern, own in patterns.items()}


def _name(pattern: str, field: str, where: str) -> str:
    """The module's name that a pattern of peft spells. Peft takes any regex; a file's is never run."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        raise ArtifactError(f"{where}: the {field!r} {pattern!r} is no name of a module")
    return name


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
