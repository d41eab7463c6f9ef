"""A safetensors file: eight bytes of length, a JSON header, and the tensors' bytes one after the other.

The format is read here, not by its library, for two reasons. Pages of a mapped file count as resident memory, so that
a mapped checkpoint is in memory twice while it is copied; here a tensor is read into its place a few megabytes at a
time. And a damaged file deserves to be told where it is damaged.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lens_core.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["SafetensorsFile", "StoredTensor"]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_PIECE_BYTES = 4 * 2**20
_PICKLES = (b"PK\x03\x04", b"\x80")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file: bytes `begin` to `end`, counted from the file's first."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """What a safetensors file holds. Opening one reads and checks the header, and no tensor.

    Args:
        path: the file.

    Attributes:
        tensors: by name, in the order in which they lie in the file.
        metadata: texts that the writer added.

    Raises:
        ArtifactError: it cannot be read, is damaged, or ends too early; the message says at which byte.
    """

    def __init__(self, path: Path):
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                start = file.read(_LENGTH_BYTES)
                length = int.from_bytes(start, "little")
                header_end = _LENGTH_BYTES + length
                if len(start) < _LENGTH_BYTES:
                    raise self._damaged(f"it ends at byte {size:,}, inside its header")
                if length > _MOST_HEADER_BYTES:
                    pickle = ": it looks like a pickle, and those are never read" if start.startswith(_PICKLES) else ""
                    raise self._damaged(f"it does not start like a safetensors file{pickle}")
                if header_end > size:
                    raise self._damaged(f"it ends at byte {size:,}, inside its header of {header_end:,}")
                header = self._parse(file.read(length))
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        if not isinstance(self.metadata, dict) or not all(isinstance(text, str) for text in self.metadata.values()):
            raise self._damaged("its metadata are not texts")
        entries = [(name, self._entry(name, value, header_end)) for name, value in header.items()]
        self.tensors = dict(sorted(entries, key=lambda entry: (entry[1].begin, entry[1].end)))
        self._check_layout(header_end, size)

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor on the CPU, in `dtype` or as stored."""
        stored = self.tensors[name]
        tensor = torch.empty(stored.shape, dtype=dtype or stored.dtype)
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, into: Tensor) -> None:
        """Fill a contiguous tensor of the stored shape, of any dtype and on any device.

        Raises:
            ArtifactError: the file cannot be read, or has become shorter since it was opened.
        """
        stored = self.tensors[name]
        flat = into.detach().view(-1)
        # Mapped, so that it goes back to the system: the heap would keep it, cut up by what is allocated meanwhile.
        room = mmap.mmap(-1, _PIECE_BYTES)
        piece = torch.frombuffer(room, dtype=stored.dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(stored.begin)
                for first in range(0, flat.numel(), piece.numel()):
                    count = min(piece.numel(), flat.numel() - first)
                    left = memoryview(room)[: count * stored.dtype.itemsize]
                    while len(left):
                        got = file.readinto(left)
                        if not got:
                            raise self._damaged(f"it ends at byte {file.tell():,}, inside {name!r}")
                        left = left[got:]
                    flat[first : first + count].copy_(piece[:count])
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def _parse(self, text: bytes) -> dict[str, Any]:
        try:
            header = json.loads(text, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its header is no JSON: {error}") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is no JSON object")
        return header

    def _entry(self, name: str, value: Any, header_end: int) -> StoredTensor:
        try:
            dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
            numbers = (*shape, begin, end)
        except (TypeError, KeyError, ValueError) as error:
            raise self._damaged(f"its header says too little of {name!r}") from error
        if not all(type(number) is int and 0 <= number < 2**60 for number in numbers) or not isinstance(dtype, str):
            raise self._damaged(f"its header says what cannot be of {name!r}")
        if dtype not in _DTYPES:
            raise ArtifactError(f"{self.path}: {name!r} is stored as {dtype}, which this Lens does not read")
        if math.prod(shape) * _DTYPES[dtype].itemsize != end - begin:
            raise self._damaged(f"{name!r} is {dtype} {shape}, which does not take {end - begin:,} bytes")
        return StoredTensor(_DTYPES[dtype], tuple(shape), header_end + begin, header_end + end)

    def _check_layout(self, header_end: int, size: int) -> None:
        """Tensors follow one another without gaps, and the file ends with the last."""
        end = header_end
        for name, stored in self.tensors.items():
            if stored.begin != end:
                raise self._damaged(f"{name!r} does not start at byte {end:,}, where the tensor before it ends")
            end = stored.end
        if size < end:
            inside = next(name for name, stored in self.tensors.items() if size < stored.end)
            raise self._damaged(f"it ends at byte {size:,} of {end:,}, inside {inside!r}")
        if size > end:
            raise self._damaged(f"it goes on for {size - end:,} bytes after its last tensor")

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path} is damaged or truncated: {what}")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name appears twice")
    return values
