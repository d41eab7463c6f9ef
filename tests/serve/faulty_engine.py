"""The real engine, but with steps that go wrong where a prompt says so: `python -m serve.faulty_engine`.

    poison       raises, whoever shares the step
    die          ends the process
    hang         never comes back
    too large    runs out of memory
    crowded      runs out of memory unless it is alone
    NaN          makes numbers that are none
    lost         raises, and the device answers no more
    slow         takes a twentieth of a second longer

With "once" in the prompt, only the first time: a file in the folder that the variable FAULTS names remembers it, for
the next process too.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from lens_core.diffusion.drawing import Pack
from lens_serve.engine import loop
from lens_serve.engine.__main__ import main
from lens_serve.engine.trouble import DeviceLostError


def first_time(prompt, fault):
    """Whether this fault is to happen now."""
    if "once" not in prompt:
        return True
    mark = Path(os.environ["FAULTS"], fault.replace(" ", "-"))
    if mark.exists():
        return False
    mark.touch()
    return True


def poison(pack):
    raise ZeroDivisionError("poison")


def die(pack):
    os._exit(9)


def hang(pack):
    time.sleep(3600)


def too_large(pack):
    raise torch.OutOfMemoryError("too large")


def crowded(pack):
    if len(pack.drawings) > 1:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")


def not_a_number(pack):
    for drawing in pack.drawings:
        if "NaN" in drawing.request.prompt:
            drawing.tokens_NC.fill_(torch.nan)


def lost(pack):
    def check_device(device):
        raise DeviceLostError(f"{device} is lost: an illegal memory access was encountered")

    loop.check_device = check_device
    raise RuntimeError("an illegal memory access was encountered")


def slow(pack):
    time.sleep(0.05)


FAULTS = {
    "poison": poison,
    "die": die,
    "hang": hang,
    "too large": too_large,
    "crowded": crowded,
    "NaN": not_a_number,
    "lost": lost,
    "slow": slow,
}
step = Pack.step


def faulty_step(pack):
    prompts = [drawing.request.prompt for drawing in pack.drawings]
    for fault, cause in FAULTS.items():
        if any(fault in prompt and first_time(prompt, fault) for prompt in prompts):
            cause(pack)
    step(pack)


if __name__ == "__main__":
    Pack.step = faulty_step
    sys.exit(main())
