"""Prompts on their way to the drawing, with rewriters that are slow, broken, or talk nonsense."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Literal

import pytest

from lens_core.config.base import ComponentConfig
from lens_core.plugins import Offer, Plugin
from lens_core.registry import registry_of
from lens_core.specs import RewriterSpec
from lens_serve.config import RewriteSettings
from lens_serve.rewriting import Breaker, Rewriting, Rewritten

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class HeldConfig(ComponentConfig):
    """A rewriter that a test holds by a string."""

    type: Literal["held"] = "held"


class Held:
    """Rewrites when it may; `answer` says what it makes of a prompt, or raises."""

    template = "held-1"

    def __init__(self, config):
        self.config = config
        self.may = threading.Event()
        self.may.set()
        self.asked = []
        self.answer = lambda prompt, seed: f"{prompt}, in detail"
        self.most = self._now = 0
        self._lock = threading.Lock()

    def rewrite(self, prompts, *, seed=0):
        with self._lock:
            self.asked += [(prompt, seed) for prompt in prompts]
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            assert self.may.wait(60)
            return [self.answer(prompt, seed) for prompt in prompts]
        finally:
            with self._lock:
                self._now -= 1


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


SPEC = RewriterSpec(name="held", summary="For tests.", config=f"{__name__}:HeldConfig", target=f"{__name__}:Held")
PLUGIN = Plugin(name="tests", module=__name__, distribution="tests", version="0")
REGISTRY = registry_of([Offer(kind="rewriters", spec=SPEC, plugin=PLUGIN)])


def made(clock=None, **settings):
    settings = RewriteSettings(rewriter=HeldConfig(), **settings)
    rewriting = Rewriting(settings, REGISTRY, **({"clock": clock} if clock else {}))
    return rewriting, rewriting._rewriter


async def until(condition):
    """Wait for what threads bring about."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def running(rewriting):
    return len(rewriting._threads)


async def test_a_prompt_is_rewritten_and_remembered():
    rewriting, rewriter = made()
    first = await rewriting.rewrite("a cat", seed=1, wanted=None)
    assert first == Rewritten(text="a cat, in detail", outcome="rewritten", by="held", template="held-1")
    again = await rewriting.rewrite("a cat", seed=1, wanted=True)
    assert again == Rewritten(text="a cat, in detail", outcome="cached", by="held", template="held-1")
    other = await rewriting.rewrite("a cat", seed=2, wanted=True)
    assert other.outcome == "rewritten"
    assert rewriter.asked == [("a cat", 1), ("a cat", 2)]
    await rewriting.close()


async def test_a_key_is_not_told_what_others_asked():
    rewriting, rewriter = made()
    rewriter.may.clear()
    both = [asyncio.create_task(rewriting.rewrite("a cat", seed=1, wanted=None, key_id=key)) for key in ("ada", "bob")]
    await until(lambda: len(rewriter.asked) == 2)
    rewriter.may.set()
    assert [told.outcome for told in await asyncio.gather(*both)] == ["rewritten", "rewritten"]
    for key, outcome in {"ada": "cached", "bob": "cached", "eve": "rewritten"}.items():
        assert (await rewriting.rewrite("a cat", seed=1, wanted=None, key_id=key)).outcome == outcome
    assert rewriter.asked == [("a cat", 1)] * 3
    await rewriting.close()


async def test_the_built_in_rules_need_no_template(lens_registry):
    config = lens_registry.parse("rewriters", "scene-expander")
    rewriting = Rewriting(RewriteSettings(rewriter=config), lens_registry)
    told = await rewriting.rewrite("a red circle", seed=3, wanted=None)
    assert (told.outcome, told.by, told.template) == ("rewritten", "scene-expander", None)
    assert [told.text] == lens_registry.build("rewriters", config).rewrite(["a red circle"], seed=3)


async def test_nobody_is_asked_unless_it_is_wanted():
    rewriting, rewriter = made(default=False)
    assert await rewriting.rewrite("a", seed=0, wanted=None) == Rewritten(text="a", outcome="off")
    assert (await rewriting.rewrite("a", seed=0, wanted=True)).outcome == "rewritten"
    willing, _ = made(default=True)
    assert (await willing.rewrite("a", seed=0, wanted=False)).outcome == "off"
    without = Rewriting(RewriteSettings(), REGISTRY)
    assert await without.rewrite("a", seed=0, wanted=True) == Rewritten(text="a", outcome="off")
    assert len(rewriter.asked) == 1


@pytest.mark.parametrize("answer", ["a\ncat", "", "\x00 \n", "<think>a dog"])
async def test_what_changes_nothing_is_unchanged(answer):
    rewriting, rewriter = made()
    rewriter.answer = lambda prompt, seed: answer
    prompt = "<think>a dog" if "dog" in answer else "a\ncat"
    for _ in range(2):  # asked, and remembered
        told = await rewriting.rewrite(prompt, seed=0, wanted=None)
        assert (told.text, told.outcome, told.by) == (prompt, "unchanged", "held")
    assert len(rewriter.asked) == 1


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("one two three", "one two"),
        ("one two  three", "one two"),
        ("onetwothree", "onetwoth"),
        ("ab cdefgh", "ab"),
        ("one\x00\ttwo\n", "one two"),
        ("12345678", "12345678"),
        ("1234567 9", "1234567"),
        ("12345678 0", "12345678"),
    ],
)
async def test_answers_are_cut_between_words(answer, text):
    rewriting, rewriter = made(max_chars=8)
    rewriter.answer = lambda prompt, seed: answer
    assert (await rewriting.rewrite("x", seed=0, wanted=None)).text == text


def _broken(prompt, seed):
    raise RuntimeError(f"cannot do {prompt}")


@pytest.mark.parametrize("answer", [_broken, lambda prompt, seed: None, lambda prompt, seed: 7])
async def test_a_broken_rewriter_falls_back_and_is_logged_without_the_prompt(answer, caplog):
    rewriting, rewriter = made()
    rewriter.answer = answer
    with caplog.at_level(logging.DEBUG, "lens_serve"):
        told = await rewriting.rewrite("my secret", seed=0, wanted=None)
    assert told == Rewritten(
        text="my secret", outcome="fallback", by="held", reason="the rewriter failed", template="held-1"
    )
    assert "rewriter held" in caplog.text
    assert "secret" not in caplog.text
    rewriter.answer = lambda prompt, seed: "better"
    assert (await rewriting.rewrite("my secret", seed=0, wanted=None)).text == "better"  # failures are not remembered


async def test_more_or_fewer_texts_than_prompts_are_a_failure():
    rewriting, rewriter = made()
    rewriter.rewrite = lambda prompts, *, seed: ["a", "b"]
    assert (await rewriting.rewrite("x", seed=0, wanted=None)).outcome == "fallback"
    rewriter.rewrite = lambda prompts, *, seed: []
    assert (await rewriting.rewrite("y", seed=0, wanted=None)).outcome == "fallback"


async def test_a_slow_rewriter_falls_back_and_what_it_says_later_is_remembered():
    rewriting, rewriter = made(timeout_s=0.05)
    rewriter.may.clear()
    told = await rewriting.rewrite("a", seed=0, wanted=None)
    assert (told.text, told.outcome, told.reason) == ("a", "fallback", "the rewriter took longer than 0.05 s")
    rewriter.may.set()
    await until(lambda: running(rewriting) == 0)
    assert (await rewriting.rewrite("a", seed=0, wanted=None)).outcome == "cached"


async def test_the_event_loop_goes_on_meanwhile():
    rewriting, rewriter = made()
    rewriter.may.clear()
    waiting = asyncio.create_task(rewriting.rewrite("a", seed=0, wanted=None))
    await until(lambda: rewriter.asked)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not waiting.done()
    rewriter.may.set()
    assert (await waiting).outcome == "rewritten"


async def test_no_more_are_asked_at_once_than_set():
    rewriting, rewriter = made(concurrency=2)
    rewriter.may.clear()
    tasks = [asyncio.create_task(rewriting.rewrite(f"p{number}", seed=0, wanted=None)) for number in range(6)]
    await until(lambda: len(rewriter.asked) == 2)
    await asyncio.sleep(0.02)
    assert len(rewriter.asked) == 2
    rewriter.may.set()
    assert [told.outcome for told in await asyncio.gather(*tasks)] == ["rewritten"] * 6
    assert rewriter.most <= 2


async def test_equal_requests_ask_once():
    rewriting, rewriter = made()
    rewriter.may.clear()
    tasks = [asyncio.create_task(rewriting.rewrite("a", seed=0, wanted=None)) for _ in range(5)]
    await until(lambda: rewriter.asked)
    rewriter.may.set()
    assert {told.text for told in await asyncio.gather(*tasks)} == {"a, in detail"}
    assert rewriter.asked == [("a", 0)]


async def test_a_request_that_goes_away_leaves_nothing_behind():
    before = asyncio.all_tasks()
    rewriting, rewriter = made(concurrency=1)
    rewriter.may.clear()
    gone = asyncio.create_task(rewriting.rewrite("a", seed=0, wanted=None))
    stays = asyncio.create_task(rewriting.rewrite("a", seed=0, wanted=None))
    await until(lambda: rewriter.asked)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    rewriter.may.set()
    assert (await stays).outcome == "rewritten"
    await until(lambda: running(rewriting) == 0)
    assert rewriting._asked == {}
    assert (await rewriting.rewrite("a", seed=0, wanted=None)).outcome == "cached"
    assert rewriter.asked == [("a", 0)]
    assert asyncio.all_tasks() == before


async def test_threads_that_nobody_waits_for_are_bounded_and_block_nobody():
    clock = Clock()
    rewriting, rewriter = made(clock, concurrency=1, timeout_s=0.2)
    rewriter.may.clear()
    outcomes = []
    for number in range(6):
        clock.now += 60  # the breaker lets everybody try
        outcomes.append((await rewriting.rewrite(f"p{number}", seed=0, wanted=None)).reason)
    slow, busy = "the rewriter took longer than 0.2 s", "the rewriter is busy"
    assert outcomes == [slow, slow, busy, busy, busy, busy]
    assert running(rewriting) == 2
    rewriter.may.set()
    await until(lambda: running(rewriting) == 0)
    clock.now += 60
    assert (await rewriting.rewrite("q", seed=0, wanted=None)).outcome == "rewritten"


async def test_who_waits_too_long_for_a_turn_is_no_failure_of_the_rewriter():
    rewriting, rewriter = made(concurrency=1, timeout_s=0.2)
    rewriter.may.clear()
    told = await asyncio.gather(*(rewriting.rewrite(f"p{number}", seed=0, wanted=None) for number in range(5)))
    assert sorted(one.reason for one in told)[:4] == ["the rewriter is busy"] * 4
    rewriter.may.set()
    await until(lambda: running(rewriting) == 0)
    assert (await rewriting.rewrite("q", seed=0, wanted=None)).outcome == "rewritten"  # one failure, not five


async def test_a_rewriter_that_is_down_is_left_alone_for_a_while():
    clock = Clock()
    rewriting, rewriter = made(clock)
    rewriter.answer = _broken

    async def outcome(prompt):
        told = await rewriting.rewrite(prompt, seed=0, wanted=None)
        return told.outcome, len(rewriter.asked)

    assert [await outcome(f"a{number}") for number in range(3)] == [("fallback", n) for n in (1, 2, 3)]
    clock.now += 9.9
    assert await outcome("b") == ("fallback", 3)  # nobody asks
    clock.now += 0.2
    assert await outcome("c") == ("fallback", 4)  # one tries
    assert await outcome("d") == ("fallback", 4)
    clock.now += 10.1
    rewriter.answer = lambda prompt, seed: "better"
    assert await outcome("e") == ("rewritten", 5)
    assert await outcome("f") == ("rewritten", 6)


async def test_what_is_remembered_is_bounded_and_the_oldest_goes():
    rewriting, rewriter = made(cache=2)
    for prompt in ("a", "b", "a", "c"):
        await rewriting.rewrite(prompt, seed=0, wanted=None)
    assert (await rewriting.rewrite("a", seed=0, wanted=None)).outcome == "cached"
    assert (await rewriting.rewrite("b", seed=0, wanted=None)).outcome == "rewritten"
    nothing, _ = made(cache=0)
    for _ in range(2):
        assert (await nothing.rewrite("a", seed=0, wanted=None)).outcome == "rewritten"
    assert len(rewriter.asked) == 4


async def test_closing_waits_a_little_and_no_more():
    rewriting, rewriter = made()
    rewriter.may.clear()
    waiting = asyncio.create_task(rewriting.rewrite("a", seed=0, wanted=None))
    await until(lambda: rewriter.asked)
    await rewriting.close(patience_s=0.01)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    rewriter.may.set()
    await until(lambda: running(rewriting) == 0)
    await rewriting.close()


def test_a_thread_that_outlives_the_loop_does_no_harm():
    held, before = [], set(threading.enumerate())

    async def begin():
        rewriting, rewriter = made(timeout_s=0.02)
        rewriter.may.clear()
        held.append(rewriter)
        await rewriting.rewrite("a", seed=0, wanted=None)

    asyncio.run(begin())
    (thread,) = [thread for thread in set(threading.enumerate()) - before if thread.name == "rewriter"]
    assert thread.daemon
    held[0].may.set()
    thread.join(30)
    assert not thread.is_alive()


def test_the_breaker_lets_one_try_at_a_time():
    clock = Clock()
    breaker = Breaker(failures=2, pause_s=10, clock=clock)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.lets_through()  # not two in a row
    breaker.failed()
    assert not breaker.lets_through()
    clock.now += 10
    assert [breaker.lets_through() for _ in range(3)] == [True, False, False]
    clock.now += 10  # the one that tried has not come back
    assert [breaker.lets_through() for _ in range(2)] == [True, False]
    breaker.succeeded()
    assert [breaker.lets_through() for _ in range(2)] == [True, True]
