"""The processes that train together, and what they tell each other beside gradients.

`torchrun` starts the processes and says in the environment who is who. Alone, there is nothing to join, and every
function here is what it is for one.

    world = World.join(torch.device("cuda"), timeout_s=600)
    with world.watching("step 12"):
        ...
        asked = world.sum_over(torch.tensor(float(stop_asked)))  # by any rank: all stop after the same step
    world.leave()

Four groups: the default one moves gradients (NCCL on CUDA, gloo on a CPU); `control` carries flags, and `saving` the
checkpoints, both over gloo, so that a save in a thread never meets a step's collectives out of order. In `patient`
ranks wait for what may take hours before the first step; there nobody who hangs is noticed.

Anywhere else a rank that hangs or dies makes the others wait until the time-out at most. Each leaves word in the store
of what it came to, so those who gave up can name the one who did not come.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

from lens_core.errors import ConfigError, LensError
from lens_train.parallel.meeting import name_meeting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from lens_train.parallel.config import ParallelConfig

__all__ = ["PATIENCE", "World"]

PATIENCE = timedelta(days=30)
"""How long the other ranks wait for what rank 0 does alone: it may have to make a dataset."""
GRACE_S = 5.0
"""How long those who gave up waiting give each other to report."""


@dataclass(kw_only=True)
class World:
    """Who takes part. Made by `join`.

    Args:
        rank: number of this process.
        size: how many there are.
        local_rank: number of this process on its node.
        local_size: how many there are on this node.
        device: this process's own.
        timeout_s: how long one waits for another.
        control: the group of flags; None alone.
        patient: the group in which nobody gives up waiting; None alone.
        saving: the group of checkpoints; None alone.
        store: where ranks leave word for each other; None alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device
    timeout_s: float = 600.0
    control: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None
    saving: dist.ProcessGroup | None = None
    store: Store | None = None
    _meshes: dict[tuple[int, ...], DeviceMesh] = field(default_factory=dict, repr=False)
    _waits: int = field(default=0, repr=False)

    @classmethod
    def join(cls, device: torch.device, timeout_s: float = 600.0) -> World:
        """Meet the other processes that torchrun started; alone, return at once.

        Args:
            device: its type decides; on CUDA each process takes the device of its local rank.
            timeout_s: how long one waits for another, once data are prepared.

        Raises:
            ConfigError: a node has more processes than devices.
            LensError: the others did not come.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(device=device, timeout_s=timeout_s)
        rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
        if device.type == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise ConfigError(
                    f"this node has {torch.cuda.device_count()} CUDA devices, and rank {rank} needs number "
                    f"{local_rank}: start as many processes as there are devices (torchrun --nproc-per-node)"
                )
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        timeout = timedelta(seconds=timeout_s)
        try:
            kept, rank, size = next(rendezvous("env://", timeout=timeout))
            store = PrefixStore(name_meeting(kept, rank, size, timeout_s), kept)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore("groups", store),
                rank=rank,
                world_size=size,
                timeout=timeout,
            )
            control, saving = (dist.new_group(backend="gloo", timeout=timeout) for _ in range(2))
            patient = dist.new_group(backend="gloo", timeout=timeout)
            _set_pg_timeout(PATIENCE, patient)  # they meet in time; then they wait
        except (RuntimeError, ValueError) as error:
            raise LensError(f"rank {rank} of {size} cannot meet the others within {timeout_s:g} s: {error}") from error
        return cls(
            rank=rank,
            size=size,
            local_rank=local_rank,
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
            device=device,
            timeout_s=timeout_s,
            control=control,
            patient=patient,
            saving=saving,
            store=PrefixStore("lens", store),
        )

    def leave(self) -> None:
        """Close the groups; the others need not be there."""
        if self.size > 1:
            dist.destroy_process_group()
            # A group's threads end with the last reference to it. One that is late may still hold the tensor it moved
            # last and needs the interpreter to free it; where that is being torn down, the process would abort. FSDP
            # keeps the default group for itself: its last tensor came long before those of `control`.
            self.control = self.patient = self.saving = None
            self._meshes.clear()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, who writes what is written once."""
        return self.rank == 0

    def mesh(self, settings: ParallelConfig) -> DeviceMesh | None:
        """The ranks as (replicate, shard), or as (shard) of one copy; the same object for the same settings.

        Alone it is None.

        Raises:
            ConfigError: the two do not multiply to the number of ranks.
        """
        if self.size == 1:
            return None
        replicate, shard = settings.replicate, settings.shard
        if replicate is None:
            replicate = self.size // (shard or min(self.local_size, self.size))
        shard = shard or max(1, self.size // replicate)
        if replicate * shard != self.size:
            raise ConfigError(
                f"parallel: replicate {replicate} times shard {shard} is {replicate * shard}, and there are "
                f"{self.size} ranks"
            )
        shape = (shard,) if replicate == 1 else (replicate, shard)
        if shape not in self._meshes:
            names = ("replicate", "shard")[-len(shape) :]
            mesh = self._meshes[shape] = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
            for group in mesh.get_all_groups():  # those of two dimensions are new, and would wait for half an hour
                _set_pg_timeout(timedelta(seconds=self.timeout_s), group)
        return self._meshes[shape]

    def sum_over(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's tensor, the same on all; a tensor of its own."""
        total = tensor.detach().clone()
        if self.size > 1:
            with self.watching("a sum over all ranks"):
                dist.all_reduce(total, group=self.control if total.device.type == "cpu" else None)
        return total

    def gather(self, lines: list[str]) -> list[str]:
        """What every rank has to say, in the order of the ranks; the same on all."""
        if self.size == 1:
            return lines
        told: list[list[str]] = [[]] * self.size
        with self.watching("what all ranks have to say"):
            dist.all_gather_object(told, lines, group=self.control)
        return [line for own in told for line in own]

    def barrier(self, name: str) -> None:
        """Go on once every rank is here.

        Raises:
            LensError: after the time-out, with the ranks that did not come.
        """
        if self.size > 1:
            with self.watching(name):
                dist.all_reduce(torch.zeros(()), group=self.control)

    def after_main(self, what: str, do: Callable[[], None]) -> None:
        """Go on once rank 0 has done something, however long that takes; if it fails, all fail with it.

        Raises:
            LensError: what rank 0 raised, or a rank is gone.
        """
        told = [""]
        if self.is_main:
            try:
                do()
            except BaseException as error:
                with suppress(LensError):  # if nobody is there to be told
                    self._tell(what, [f"rank 0: {str(error) or type(error).__name__}"])
                raise
        self._tell(what, told)
        if told[0]:
            raise LensError(told[0])

    def _tell(self, what: str, told: list[str]) -> None:
        if self.size > 1:
            with self.watching(what):
                dist.broadcast_object_list(told, src=0, group=self.patient)

    def meet(self, what: str) -> None:
        """Go on once every rank is here, however long that takes.

        Raises:
            LensError: a rank is gone.
        """
        if self.size > 1:
            with self.watching(what):
                dist.all_reduce(torch.zeros(()), group=self.patient)

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Around anything in which all ranks take part, in the same order: if it fails, say who was missing.

        Raises:
            LensError: a collective waited in vain; the message names the ranks that did not come.
        """
        if self.store is None:
            yield
            return
        self._waits += 1
        began = time.monotonic()
        try:
            self.store.set(f"at/{self.rank}", str(self._waits))
            yield
        except RuntimeError as error:
            if not _is_silence(error):
                raise
            waited = time.monotonic() - began
            absent = self._absent(self.store)
            who = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}" if absent else "another rank"
            raise LensError(
                f"{what}: {who} of {self.size} did not come, and rank {self.rank} gave up after {waited:.0f} s; "
                "the log of the missing says why; if it was only slow, raise parallel.timeout_s"
            ) from error

    def _absent(self, store: Store) -> list[int]:
        """The ranks that never came to what this one waits for; if all did, those that do not give it up as well."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        behind: list[int] = []
        with suppress(RuntimeError):  # who keeps the store may be the one who is gone
            behind = [rank for rank in others if self._reached(store, rank) < self._waits]
            store.set(f"gave up/{self._waits}/{self.rank}", "")
            others = [rank for rank in others if rank not in behind]
            until = time.monotonic() + GRACE_S
            while others and time.monotonic() < until:  # who keeps the store is not to leave before they have read it
                others = [rank for rank in others if not store.check([f"gave up/{self._waits}/{rank}"])]
                time.sleep(0.1)
        return behind or others

    def _reached(self, store: Store, rank: int) -> int:
        return int(store.get(f"at/{rank}")) if store.check([f"at/{rank}"]) else 0


def _is_silence(error: RuntimeError) -> bool:
    """Whether a collective failed for want of another rank: gloo gives such errors no type of their own."""
    return isinstance(error, dist.DistError) or any(
        sign in str(error)
        for sign in ("Timed out", "timed out", "Connection closed by peer", "Connection reset", "gloo")
    )
