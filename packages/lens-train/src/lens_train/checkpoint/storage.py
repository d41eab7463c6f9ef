"""How a checkpoint lies in its folder: safetensors by each rank, and one JSON file that says what is where.

    state.json                   format_version, meta, and of each tensor its dtype, shape and chunks
    rank-00000.safetensors …     the chunks that a rank wrote, each under its tensor's name

torch's distributed checkpoints (DCP) plan what each rank writes and reads; its own storage keeps that plan in a pickle,
and this one does not. `finish` is DCP's last call, made by one rank once all have written: there the checkpoint is
committed.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from lens_core.errors import ArtifactError
from lens_train.checkpoint.writing import writing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner

__all__ = ["Description", "SafetensorsReader", "SafetensorsWriter"]

STATE = "state.json"
FORMAT_VERSION = 1


class SafetensorsWriter(StorageWriter):
    """DCP's way into a folder.

    Args:
        folder: where; it is made.
        rank: of this process.
        meta: goes into `state.json`; JSON only.
        commit: is called by one rank when everything is on the disk.
    """

    def __init__(self, folder: Path, rank: int, meta: Mapping[str, Any], commit: Callable[[], None]):
        self.folder = folder
        self.rank = rank
        self.meta = meta
        self.commit = commit

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one save to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the folder."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As planned."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's chunks.

        Raises:
            StorageError: they cannot be written.
        """
        tensors: dict[str, torch.Tensor] = {}
        results = []
        path = self.folder / f"rank-{self.rank:05d}.safetensors"
        for item in plan.items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor), f"{item.index.fqn} is no tensor"
            assert item.index.fqn not in tensors, f"two chunks of {item.index.fqn} on one rank"
            tensors[item.index.fqn] = tensor.detach().cpu().contiguous()
            results.append(WriteResult(item.index, tensor.nbytes, path.name))
        if tensors:
            with writing(path):
                save_file(tensors, path)
                _sync(path)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write what is where, and commit.

        Raises:
            StorageError: it cannot be written.
        """
        files = {
            (result.index.fqn, tuple(result.index.offset or ())): result.storage_data
            for own in results
            for result in own
        }
        tensors = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            tensors[name] = {
                "dtype": str(entry.properties.dtype).removeprefix("torch."),
                "shape": list(entry.size),
                "chunks": [
                    {
                        "offset": list(chunk.offsets),
                        "shape": list(chunk.sizes),
                        "file": files[name, tuple(chunk.offsets)],
                    }
                    for chunk in entry.chunks
                ],
            }
        state = {"format_version": FORMAT_VERSION, "meta": self.meta, "tensors": tensors}
        path = self.folder / STATE
        with writing(path):
            path.write_text(json.dumps(state), encoding="utf-8")
            _sync(path)
        self.commit()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Folders are given to the constructor."""
        return False


class Description:
    """What `state.json` says.

    Args:
        folder: a checkpoint.

    Raises:
        ArtifactError: the file is missing, damaged, or of a later version.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            version = state["format_version"]
            self.meta: dict[str, Any] = state["meta"]
            self.tensors = {name: _entry(fields) for name, fields in state["tensors"].items()}
            self.files = {
                MetadataIndex(name, chunk["offset"]): _neighbour(chunk["file"])
                for name, fields in state["tensors"].items()
                for chunk in fields["chunks"]
            }
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} describes no training state: {error!r}; remove the folder") from error
        if version != FORMAT_VERSION:
            raise ArtifactError(f"{path} has format_version {version}; this Lens reads {FORMAT_VERSION}")

    @property
    def shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Of each tensor its shape and dtype."""
        return {name: (entry.size, entry.properties.dtype) for name, entry in self.tensors.items()}


class SafetensorsReader(StorageReader):
    """DCP's way out of a folder."""

    def __init__(self, description: Description):
        self.description = description

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one load to the next."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What is where."""
        return Metadata(state_dict_metadata=dict(self.description.tensors), storage_data=self.description.files)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """There is nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As planned."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the parts of chunks that this rank needs.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self.description.files[item.storage_index], []).append(item)
        for name, items in by_file.items():
            path = self.description.folder / name
            try:
                with safe_open(path, framework="pt") as file:
                    for item in items:
                        region = tuple(
                            slice(start, start + length)
                            for start, length in zip(item.storage_offsets, item.lengths, strict=True)
                        )
                        stored = file.get_slice(item.storage_index.fqn)
                        part = stored[region] if region else file.get_tensor(item.storage_index.fqn)
                        target = planner.resolve_tensor(item).detach()
                        target.copy_(part)
                        planner.commit_tensor(item, target)
            except (OSError, SafetensorError) as error:
                raise ArtifactError(f"{path} cannot be read: {error}; remove the folder of this checkpoint") from error
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Folders are given to the constructor."""
        return False


def _entry(fields: Mapping[str, Any]) -> TensorStorageMetadata:
    dtype = getattr(torch, fields["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"there is no dtype {fields['dtype']}")
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=dtype),
        size=torch.Size(fields["shape"]),
        chunks=[ChunkStorageMetadata(torch.Size(c["offset"]), torch.Size(c["shape"])) for c in fields["chunks"]],
    )


def _neighbour(name: str) -> str:
    if "/" in name or "\\" in name or not name.endswith(".safetensors"):
        raise ValueError(f"{name!r} is no file beside it")
    return name


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
