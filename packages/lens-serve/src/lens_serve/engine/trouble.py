"""What goes wrong in calls that several jobs share, and who is to blame."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from lens_core.errors import ConfigError, LensError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lens_serve.engine.messages import Reason

__all__ = ["DeviceLostError", "NotFiniteError", "blame", "check_device", "give_back", "out_of_memory", "together"]

Member = TypeVar("Member")


class NotFiniteError(LensError):
    """A picture of NaN or infinity."""


class DeviceLostError(LensError):
    """The device answers no more in this process: after an illegal access, every later call fails as well."""


def together(members: Sequence[Member], call: Callable[[Sequence[Member]], None]) -> dict[Member, Exception]:
    """Call for all members at once; where that fails, once for each alone, so that only the guilty ones fail.

    Running out of memory is nobody's guilt: then all have failed, and may try again in smaller company.

    Returns:
        Those that failed, and how.
    """
    try:
        call(members)
        return {}
    except Exception as error:
        if len(members) == 1 or out_of_memory(error):
            return dict.fromkeys(members, error)
    failed = {}
    for member in members:
        try:
            call([member])
        except Exception as error:
            failed[member] = error
    return failed


def out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory, of the device or of the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Allocators of the CPU and of MPS say so in words only.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def blame(error: Exception) -> tuple[Reason, str]:
    """What the client is told of an error: only of its own mistakes what they were."""
    if out_of_memory(error):
        return "memory", "there is too little memory for this picture, even alone"
    if isinstance(error, NotFiniteError):
        return "not-finite", str(error)
    if isinstance(error, ConfigError):
        return "invalid", str(error)
    return "internal", f"{type(error).__name__} while it was drawn; the engine's log says more"


def check_device(device: torch.device) -> None:
    """Make sure, after an error, that the device still works.

    Raises:
        DeviceLostError: it does not; a new process may have more luck.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise DeviceLostError(f"{device} is lost: {error}") from error


def give_back(device: torch.device) -> None:
    """Let the device have the memory that failed calls have left behind."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
