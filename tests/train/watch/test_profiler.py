"""Traces: as many steps as were asked for, planned or by signal, and what there is if the run ends before."""

from __future__ import annotations

import gzip
import json
import os
import signal

from lens_train.loop.budget import Budget
from lens_train.watch.config import ProfileConfig, WatchConfig
from lens_train.watch.profiler import TRACES


def products(trainer):
    """How many matrix products each trace has."""
    counts = {}
    for file in sorted((trainer.folder / TRACES).iterdir()):
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        counts[file.name] = sum(event.get("name") == "aten::linear" for event in events)
    return counts


def test_a_trace_covers_the_steps_that_were_planned(new_trainer, progress):
    counts = {}
    for state, at, steps in (("one", 2, 1), ("two", 2, 2), ("short", 4, 9)):
        watch = WatchConfig(profile=ProfileConfig(at=at, steps=steps))
        trainer = new_trainer(state=state, budget=Budget(steps=5), watch=watch)
        trainer.run(progress)
        counts[state] = products(trainer)
    (once,) = counts["one"].values()
    assert once > 0
    assert counts["two"] == {"step-2-rank-0.json.gz": 2 * once}
    assert counts["short"] == {"step-4-rank-0.json.gz": 2 * once}


class Signals:
    """Sends the signal after the second step."""

    every = 2

    def look(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return {}

    def judge(self, seen):
        pass


def test_a_signal_asks_for_a_trace(new_trainer, progress):
    before = signal.getsignal(signal.SIGUSR1)
    trainer = new_trainer(budget=Budget(steps=7), watchers=[Signals()])
    trainer.run(progress)
    assert list(products(trainer)) == ["step-3-rank-0.json.gz"]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_no_trace_without_being_asked(new_trainer, progress):
    trainer = new_trainer(budget=Budget(steps=2))
    trainer.run(progress)
    assert not (trainer.folder / TRACES).exists()
