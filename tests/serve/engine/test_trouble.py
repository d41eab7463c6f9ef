"""Who is to blame when a call fails that several share."""

from __future__ import annotations

import pytest
import torch

from lens_core.errors import ConfigError, LensError
from lens_serve.engine.trouble import NotFiniteError, blame, check_device, out_of_memory, together


class Calls:
    """A call that fails for some members, and remembers who was in it."""

    def __init__(self, errors):
        self.errors, self.members = errors, []

    def __call__(self, members):
        self.members.append("".join(members))
        for member in members:
            if member in self.errors:
                raise self.errors[member]


def test_what_goes_well_is_called_once():
    calls = Calls({})
    assert together("abc", calls) == {}
    assert calls.members == ["abc"]


def test_each_is_tried_alone_once_and_the_guilty_fail():
    error, other = ValueError("b"), KeyError("d")
    calls = Calls({"b": error, "d": other})
    assert together("abcd", calls) == {"b": error, "d": other}
    assert calls.members == ["abcd", "a", "b", "c", "d"]


def test_who_is_alone_is_not_tried_again():
    error = ValueError("a")
    calls = Calls({"a": error})
    assert together("a", calls) == {"a": error}
    assert calls.members == ["a"]


def test_without_memory_nobody_is_tried_again():
    error = torch.OutOfMemoryError("CUDA out of memory")
    calls = Calls({"b": error})
    assert together("abc", calls) == {"a": error, "b": error, "c": error}
    assert calls.members == ["abc"]


def test_an_interrupt_is_nobodys_fault():
    with pytest.raises(KeyboardInterrupt):
        together("ab", Calls({"b": KeyboardInterrupt()}))


def test_the_allocator_of_the_cpu_is_understood():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert out_of_memory(raised.value)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, is_memory):
    assert out_of_memory(error) is is_memory


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (MemoryError(), "memory", "there is too little memory for this picture, even alone"),
        (NotFiniteError("not finite"), "not-finite", "not finite"),
        (ConfigError("a scale of 2"), "invalid", "a scale of 2"),
        (LensError("/srv/secret/ink.safetensors is damaged"), "internal", "LensError while it was drawn"),
        (KeyError("my prompt"), "internal", "KeyError while it was drawn"),
    ],
)
def test_clients_are_told_of_their_own_mistakes_only(error, reason, message):
    told = blame(error)
    assert told[0] == reason
    assert told[1].startswith(message)
    assert "secret" not in told[1]
    assert "prompt" not in told[1]


def test_the_cpu_is_never_lost():
    check_device(torch.device("cpu"))
