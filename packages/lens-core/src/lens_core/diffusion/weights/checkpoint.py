"""A module's weights in a folder, as diffusers and transformers lay them out.

    NAME.safetensors                       all of them, or
    NAME-00001-of-00003.safetensors …      shards, and
    NAME.safetensors.index.json            {"metadata": {"total_size": bytes}, "weight_map": {key: shard}}

Loading is strict and lean: the headers of all files are checked against each other and against the module before
anything is touched, and then each tensor is read into its place. So a module built on the meta device costs no more
memory than its weights:

    with torch.device("meta"):
        model = LensTransformer2DModel(**config)
    load_weights(model, folder / "transformer")
"""

from __future__ import annotations

import json
import os
import re
import uuid
from typing import TYPE_CHECKING

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lens_core.diffusion.weights.stored import SafetensorsFile
from lens_core.errors import ArtifactError, ConfigError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["fill", "load_weights", "plain_weights", "save_weights", "write_safetensors"]

_MOST_INDEX_BYTES = 64 * 2**20

Found = dict[str, tuple[SafetensorsFile, str]]
"""Where each of a module's tensors is: the file, and the name it has there."""


def load_weights(
    module: nn.Module,
    folder: Path,
    name: str = "diffusion_pytorch_model",
    *,
    dtype: torch.dtype | None = torch.float32,
) -> None:
    """Fill a module from `NAME.safetensors` or, where `NAME.safetensors.index.json` lies, from the shards it names.

    Args:
        module: to be filled. Parameters on the meta device are made on the CPU, others are filled where they are.
            Names, `requires_grad` and the mode of training stay.
        folder: where the files are.
        name: the files' name without suffixes; transformers' is "model".
        dtype: of the filled floating-point tensors; None keeps what is stored. Other tensors are as stored.

    Raises:
        ArtifactError: a file is missing or damaged, or its tensors are not the module's; the message names the file and
            the key or byte. The module is as it was.
        ConfigError: the module carries LoRAs.
    """
    index = folder / f"{name}.safetensors.index.json"
    if index.exists():
        fill(module, _shards(index), where=index, dtype=dtype)
    else:
        file = SafetensorsFile(folder / f"{name}.safetensors")
        fill(module, {key: (file, key) for key in file.tensors}, where=file.path, dtype=dtype)


def save_weights(
    module: nn.Module,
    folder: Path,
    name: str = "diffusion_pytorch_model",
    *,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a module's weights, in one file or, where they are more than `max_shard_bytes`, in shards.

    Files are written under temporary names and then renamed, the index last. What an earlier save left under the same
    name, and is not part of this one, is removed.

    Args:
        module: whose weights; they are stored in the dtype that they have.
        folder: is made if it does not exist.
        name: the files' name without suffixes.
        max_shard_bytes: the most bytes of tensors in a file. A larger tensor gets a file of its own.

    Raises:
        ConfigError: the module carries LoRAs.
        StorageError: the folder cannot be written.
    """
    weights = plain_weights(module)
    index = folder / f"{name}.safetensors.index.json"
    split = split_torch_state_dict_into_shards(
        weights, filename_pattern=f"{name}{{suffix}}.safetensors", max_shard_size=max_shard_bytes
    )
    written: list[tuple[Path, Path]] = []  # the temporary name and the final one
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, keys in split.filename_to_tensors.items():
            written.append((_temporary(folder / file), folder / file))
            _write(written[-1][0], {key: weights[key] for key in keys}, {"format": "pt"})
        index.unlink(missing_ok=True)  # an index always describes the shards beside it
        for temporary, final in written:
            temporary.replace(final)
        if split.is_sharded:
            text = json.dumps({"metadata": split.metadata, "weight_map": split.tensor_to_filename}, indent=2)
            written.append((_temporary(index), index))
            written[-1][0].write_text(text + "\n", encoding="utf-8")
            written[-1][0].replace(index)
        ours = re.compile(re.escape(name) + r"(-\d{5}-of-\d{5})?\.safetensors")
        for other in folder.iterdir():
            if ours.fullmatch(other.name) and other.name not in split.filename_to_tensors:
                other.unlink()
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {name}.safetensors in {folder}: {error}") from error
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)


def fill(module: nn.Module, found: Found, *, where: Path, dtype: torch.dtype | None) -> None:
    """Read the tensors that were found into a module, after a check that they are the module's, all and only.

    Args:
        module: see `load_weights`.
        found: for each key, the file and the name there; read in this order.
        where: the file that a message about the whole names.
        dtype: see `load_weights`.

    Raises:
        ArtifactError: see `load_weights`.
        ConfigError: see `load_weights`.
    """
    _check_no_loras(module)
    own = module.state_dict(keep_vars=True)
    _check(own, found, where)
    for name, buffer in module.named_buffers():
        if buffer.is_meta and name not in own:
            raise ValueError(f"the buffer {name!r} is in no checkpoint: build the module on a real device")
    for key, (file, name) in found.items():
        target, stored = own[key], file.tensors[name].dtype
        wanted = dtype if dtype and stored.is_floating_point else stored
        if not target.is_meta and target.dtype == wanted and target.is_contiguous():
            file.read_into(name, target)
            continue
        value = torch.empty(target.shape, dtype=wanted, device="cpu" if target.is_meta else target.device)
        file.read_into(name, value)
        if target.is_meta:
            _assign(module, key, value)
        else:
            target.data = value


def plain_weights(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors by the names that a file should have.

    Raises:
        ConfigError: the module carries LoRAs, and a file of it would fit no other module.
    """
    _check_no_loras(module)
    return {key: tensor.detach() for key, tensor in module.state_dict().items()}


def write_safetensors(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one file in one step: readers see the old content or the new, never a part.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, weights, metadata)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _shards(index: Path) -> Found:
    found: Found = {}
    weight_map = _weight_map(index)
    for name in sorted(set(weight_map.values())):
        file = SafetensorsFile(index.with_name(name))
        promised = {key for key, shard in weight_map.items() if shard == name}
        if absent := promised - file.tensors.keys():
            raise ArtifactError(f"{file.path} does not hold {_first(absent)}, which {index.name} promises")
        if surplus := file.tensors.keys() - promised:
            raise ArtifactError(f"{file.path} holds {_first(surplus)}, which {index.name} does not expect there")
        found.update({key: (file, key) for key in file.tensors})
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Which file each tensor is in; the files are the index's neighbours and nothing else."""
    try:
        with index.open("rb") as file:
            text = file.read(_MOST_INDEX_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"{index} cannot be read: {error.strerror or error}") from error
    if len(text) > _MOST_INDEX_BYTES:
        raise ArtifactError(f"{index} has more than {_MOST_INDEX_BYTES:,} bytes: it is no index of weights")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{index} is not valid JSON: {error}") from error
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ArtifactError(f"{index} has no 'weight_map' of keys and files")
    for name in weight_map.values():
        if not re.fullmatch(r"[^/\\\x00]+\.safetensors", name):
            raise ArtifactError(f"{index} names {name!r}, which is no .safetensors file beside it")
    return weight_map


def _check(own: Mapping[str, Tensor], found: Found, where: Path) -> None:
    """A module's tensors are all found, nothing else is, and shapes agree."""
    missing, extra = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    wrong = []
    for key in found.keys() & own.keys():
        file, name = found[key]
        stored = file.tensors[name]
        if stored.shape != own[key].shape:
            wrong.append((key, f"has shape {stored.shape}, not {tuple(own[key].shape)}"))
        elif stored.dtype.is_floating_point != own[key].dtype.is_floating_point:
            wrong.append((key, f"is stored as {stored.dtype}, and {own[key].dtype} is needed"))
    if not (missing or extra or wrong):
        return
    if missing:
        detail = f"{missing[0]!r} is missing"
    elif extra:
        where, detail = found[extra[0]][0].path, f"{extra[0]!r} is unknown"
    else:
        key, what = min(wrong)
        where, detail = found[key][0].path, f"{key!r} {what}"
    count = len(missing) + len(extra) + len(wrong)
    raise ArtifactError(
        f"{where} does not fit its config: {detail}" + (f" (and {count - 1} more)" if count > 1 else "")
    )


def _assign(module: nn.Module, key: str, value: Tensor) -> None:
    owner_name, _, name = key.rpartition(".")
    owner = module.get_submodule(owner_name)
    old = getattr(owner, name)
    is_parameter = isinstance(old, nn.Parameter)
    setattr(owner, name, nn.Parameter(value, requires_grad=old.requires_grad) if is_parameter else value)


def _check_no_loras(module: nn.Module) -> None:
    if any(".base_layer." in name for name, _ in module.named_parameters()):
        raise ConfigError("the module carries LoRAs: unload_loras first (and before it fuse_loras, to keep them)")


def _write(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    save_file({key: tensor.cpu().contiguous() for key, tensor in weights.items()}, path, metadata=dict(metadata))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _first(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    return repr(ordered[0]) + (f" (and {len(ordered) - 1} more)" if len(ordered) > 1 else "")
