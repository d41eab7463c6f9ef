"""A second model checks a sample of the captions against their images, sentence by sentence.

Judges trust what stands at the start of a caption, true or not; so a caption's sentences are shown in shuffled order,
each on its own. Among them is one from another caption: how often the judge calls that one wrong says how much it
overlooks. Sentences of one caption are right and wrong together, and the interval knows it.

Judging everything doubles the bill. A shard is sampled; while its interval spans the limit, the sample doubles; a shard
that is surely bad is judged whole, and its wrong captions can be rejected.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lens_caption.prompts import AnswerError
from lens_caption.quality.chat import Answer, AskError
from lens_caption.quality.text import normal, sentences
from lens_caption.quality.wilson import clustered_interval, stratified_interval, wilson_interval
from lens_core.errors import ImageError
from lens_core.images import decode, to_jpeg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lens_caption.prompts import Recipe
    from lens_caption.quality.config import JudgeConfig

__all__ = ["Decision", "Judgement", "JudgeReport", "ShardVerdict", "VerdictCache", "decide", "judge_captions"]

Decision = Literal["good", "bad", "undecided", "unjudged"]
Verdict = Literal["supported", "contradicted", "undecidable"]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the judge says of one caption.

    Args:
        key: of the image.
        shard: of the image.
        sentences: of the caption, in its order.
        verdicts: one for each.
        reasons: likewise; empty unless contradicted.
        places: where each was shown, from 0.
        control: whether the judge caught the sentence from another caption; None if there was none.
    """

    key: str
    shard: str
    sentences: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    reasons: tuple[str, ...]
    places: tuple[int, ...]
    control: bool | None

    @property
    def wrong(self) -> int:
        """Sentences that the image contradicts."""
        return self.verdicts.count("contradicted")


@dataclass(frozen=True, kw_only=True)
class ShardVerdict:
    """What is known of one shard; `low` and `high` are a 95 % interval for the share of wrong sentences."""

    shard: str
    captions: int
    judged: int
    sentences: int
    wrong: int
    wrong_captions: int
    share: float
    low: float
    high: float
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class JudgeReport:
    """What a judge found in a layer.

    Args:
        recipe: id and hash of what was asked.
        models: answers by the model that the server says it used.
        shards: a verdict on each.
        share: of wrong sentences in the whole layer, shards counting by their size; `low` and `high` as above.
        controls: sentences from other captions that were shown, and how many were called wrong; the share that is
            caught is a lower bound of what the judge sees, since some of them are true here too.
        by_place: wrong and all sentences in the first, middle and last third of what was shown. If the first third
            fares better, the judge reads less and less carefully, or more.
        undecidable: sentences that the image neither shows nor contradicts.
        unjudged: captions without a verdict, by reason.
        calls, input_tokens, output_tokens: what it cost; answers that were known already are free.
        judgements: all of them.
    """

    recipe: str
    models: dict[str, int]
    shards: tuple[ShardVerdict, ...]
    share: float
    low: float
    high: float
    controls: dict[str, float]
    by_place: tuple[tuple[int, int], ...]
    undecidable: int
    unjudged: dict[str, int]
    calls: int
    input_tokens: int
    output_tokens: int
    judgements: tuple[Judgement, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the single judgements."""
        return {key: value for key, value in asdict(self).items() if key != "judgements"}


class VerdictCache:
    """Answers that were paid for, one JSON line each, so that a run that goes on does not buy them again."""

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._known: dict[str, Answer] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
                id_ = entry.pop("id")
                self._known[id_] = Answer(**entry)
            except (ValueError, TypeError, LookupError, AttributeError):
                continue  # the line that was being written when the process was killed
        self._file = path.open("a", encoding="utf-8")
        if lines:
            self._file.write("\n")

    def get(self, id_: str) -> Answer | None:
        """A known answer."""
        return self._known.get(id_)

    def put(self, id_: str, answer: Answer) -> None:
        """Keep an answer."""
        with self._lock:
            self._known[id_] = answer
            self._file.write(json.dumps({"id": id_, **asdict(answer)}, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def decide(clusters: Sequence[tuple[int, int]], max_wrong: float) -> tuple[float, float, Decision]:
    """Interval of the share of wrong sentences, and what follows from it.

    Args:
        clusters: wrong and all sentences of each judged caption.
        max_wrong: the share that is allowed.
    """
    if not any(units for _, units in clusters):
        return 0.0, 1.0, "unjudged"
    low, high = clustered_interval(clusters)
    return low, high, "bad" if low > max_wrong else "good" if high <= max_wrong else "undecided"


def judge_captions(
    captions: Mapping[str, tuple[str, str]],
    image_of: Callable[[str], bytes],
    ask: Callable[[str, bytes], Answer],
    recipe: Recipe,
    config: JudgeConfig,
    *,
    cache: VerdictCache | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda done: None,
) -> JudgeReport:
    """Judge a sample of every shard, and more of those that are not clearly good.

    Args:
        captions: text and shard by image key.
        image_of: the bytes of an image by its key; called by one thread.
        ask: puts an instruction and a JPEG to the judge; called by several threads. It may raise `AskError`, which
            leaves that caption unjudged, or `LensError`, which ends everything.
        recipe: takes the input `statements`, gives `verdicts`.
        config: how much is judged, and what is allowed.
        cache: answers from an earlier try.
        should_stop: asked between rounds.
        progress: told how many captions have been judged.

    Raises:
        LensError: the endpoint refuses everything.
    """
    work = _Work(captions, ask, recipe, config, cache)
    waiting: dict[str, list[str]] = {}
    for key in sorted(captions):
        waiting.setdefault(captions[key][1], []).append(key)
    sizes = {shard: len(keys) for shard, keys in waiting.items()}
    for shard, keys in waiting.items():
        random.Random(f"{config.seed} {shard}").shuffle(keys)
    with ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge") as pool:
        while not should_stop() and (batch := _next_batch(waiting, work, config)):
            batch = batch[: max(0, config.max_calls - work.calls)]
            if not batch:
                break
            # A chunk at a time: the images of a whole round need not fit in memory.
            for start in range(0, len(batch), 4 * config.concurrency):
                chunk = batch[start : start + 4 * config.concurrency]
                list(pool.map(work.judge, chunk, [image_of(key) for key in chunk]))
                progress(len(work.judgements))
                if should_stop():
                    break
    return _report(work, sizes, config, recipe)


class _Work:
    """Judges single captions, and keeps what was found."""

    def __init__(
        self,
        captions: Mapping[str, tuple[str, str]],
        ask: Callable[[str, bytes], Answer],
        recipe: Recipe,
        config: JudgeConfig,
        cache: VerdictCache | None,
    ):
        self.captions = captions
        self.judgements: dict[str, Judgement] = {}
        self.unjudged: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.calls = self.input_tokens = self.output_tokens = 0
        self._keys = sorted(captions)
        self._ask, self._recipe, self._config, self._cache = ask, recipe, config, cache
        self._lock = threading.Lock()

    def clusters(self, shard: str) -> list[tuple[int, int]]:
        """Wrong and all sentences of each judged caption of a shard."""
        return [(item.wrong, len(item.verdicts)) for item in self.judgements.values() if item.shard == shard]

    def judge(self, key: str, data: bytes) -> None:
        """Judge one caption."""
        text, shard = self.captions[key]
        rng = random.Random(f"{self._config.seed} {key} {text}")
        own = sentences(text)
        control = self._foreign_sentence(key, own, rng) if self._config.controls else None
        order = list(range(len(own) + (control is not None)))
        rng.shuffle(order)
        shown = [own[number] if number < len(own) else str(control) for number in order]
        statements = [{"number": place + 1, "statement": sentence} for place, sentence in enumerate(shown)]
        try:
            jpeg = to_jpeg(decode(data), max_side=self._config.max_side, quality=self._config.jpeg_quality)
            answer = self._answer(self._recipe.fill(statements=statements), jpeg)
            verdicts = _verdicts(self._recipe.parse(answer.text), len(shown))
        except (AskError, AnswerError, ImageError) as error:
            with self._lock:
                self.unjudged[str(error)[:120]] += 1
            return
        place_of = {number: place for place, number in enumerate(order)}
        told = [verdicts[place_of[number]] for number in range(len(own))]
        judgement = Judgement(
            key=key,
            shard=shard,
            sentences=tuple(own),
            verdicts=tuple(verdict for verdict, _ in told),
            reasons=tuple(reason if verdict == "contradicted" else "" for verdict, reason in told),
            places=tuple(place_of[number] for number in range(len(own))),
            control=None if control is None else verdicts[place_of[len(own)]][0] == "contradicted",
        )
        with self._lock:
            self.judgements[key] = judgement

    def _answer(self, instruction: str, jpeg: bytes) -> Answer:
        asked = json.dumps([self._config.model, self._config.base_url, self._recipe.hash, instruction])
        id_ = hashlib.sha256(asked.encode() + hashlib.sha256(jpeg).digest()).hexdigest()
        answer = self._cache.get(id_) if self._cache else None
        if answer is None:
            with self._lock:
                self.calls += 1
            answer = self._ask(instruction, jpeg)
            with self._lock:
                self.input_tokens += answer.input_tokens
                self.output_tokens += answer.output_tokens
            if self._cache:
                self._cache.put(id_, answer)
        with self._lock:
            self.models[answer.model] += 1
        return answer

    def _foreign_sentence(self, key: str, own: list[str], rng: random.Random) -> str | None:
        """A sentence of another caption, in words that this one does not have; None if a few tries find none."""
        taken = {normal(sentence) for sentence in own}
        for _ in range(8):
            other = rng.choice(self._keys)
            found = sentences(self.captions[other][0])
            sentence = rng.choice(found) if other != key and found else ""
            if sentence and normal(sentence) not in taken:
                return sentence
        return None


def _next_batch(waiting: dict[str, list[str]], work: _Work, config: JudgeConfig) -> list[str]:
    """The captions to be judged next; they leave `waiting`."""
    batch: list[str] = []
    for shard, keys in waiting.items():
        done = work.clusters(shard)
        if not done:
            # Also after a first round without a single verdict, but not for ever.
            wanted = config.sample if sum(work.unjudged.values()) < config.max_sample else 0
        else:
            _, _, decision = decide(done, config.max_wrong)
            wanted = 0
            if decision == "bad" and config.escalate:
                wanted = len(keys)
            elif decision == "undecided":
                wanted = min(len(done), max(0, config.max_sample - len(done)))
        batch += keys[:wanted]
        del keys[:wanted]
    # Shards in turn, so that a limit on calls does not fall on the last ones alone.
    random.Random(f"{config.seed} batch").shuffle(batch)
    return batch


def _verdicts(value: Any, count: int) -> list[tuple[Verdict, str]]:
    """Verdict and reason by place.

    Raises:
        AnswerError: a number is missing, repeated or unknown.
    """
    found = {item["number"]: (item["verdict"], " ".join(item["reason"].split())[:200]) for item in value["verdicts"]}
    if len(value["verdicts"]) != count or found.keys() != set(range(1, count + 1)):
        raise AnswerError("the judge did not answer for every sentence exactly once")
    return [found[number] for number in range(1, count + 1)]


def _report(work: _Work, sizes: Mapping[str, int], config: JudgeConfig, recipe: Recipe) -> JudgeReport:
    judgements = list(work.judgements.values())
    shards, strata = [], []
    for shard, size in sizes.items():
        clusters = work.clusters(shard)
        low, high, decision = decide(clusters, config.max_wrong)
        units = sum(count for _, count in clusters)
        wrong = sum(count for count, _ in clusters)
        strata.append((size, clusters))
        shards.append(
            ShardVerdict(
                shard=shard,
                captions=size,
                judged=len(clusters),
                sentences=units,
                wrong=wrong,
                wrong_captions=sum(1 for count, _ in clusters if count),
                share=wrong / units if units else 0.0,
                low=low,
                high=high,
                decision=decision,
            )
        )
    share, low, high = stratified_interval(strata)
    thirds = [[0, 0], [0, 0], [0, 0]]
    for item in judgements:
        shown = len(item.places) + (item.control is not None)
        for place, verdict in zip(item.places, item.verdicts, strict=True):
            third = thirds[3 * place // shown]
            third[0] += verdict == "contradicted"
            third[1] += 1
    controls = [item.control for item in judgements if item.control is not None]
    caught_low, caught_high = wilson_interval(sum(controls), len(controls))
    return JudgeReport(
        recipe=f"{recipe.id} {recipe.hash}",
        models=dict(work.models),
        shards=tuple(shards),
        share=share,
        low=low,
        high=high,
        controls={"shown": len(controls), "caught": sum(controls), "low": caught_low, "high": caught_high},
        by_place=tuple((wrong, count) for wrong, count in thirds),
        undecidable=sum(item.verdicts.count("undecidable") for item in judgements),
        unjudged=dict(work.unjudged),
        calls=work.calls,
        input_tokens=work.input_tokens,
        output_tokens=work.output_tokens,
        judgements=tuple(judgements),
    )
