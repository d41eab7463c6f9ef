"""A second model checks a sample of the captions against their images, sentence by sentence.

Judges trust what stands at the start of a caption, true or not; so a caption's sentences are shown in shuffled order,
each on its own. Among them is one from another caption: how often the judge calls that one wrong says how much it
overlooks. Sentences of one caption are right and wrong together, and the interval knows it.

Judging everything doubles the bill. A shard is sampled; while its interval spans the limit, the sample doubles; a shard
that is surely bad is judged whole, and its wrong captions can be rejected. The same captions and seed give the same
questions, so that a run that goes on finds the answers that it has bought.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lens_caption.prompts import AnswerError
from lens_caption.quality.text import normal, sentences
from lens_core.intervals import clustered_interval, stratified_interval, wilson_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lens_caption.prompts import Recipe
    from lens_caption.quality.config import JudgeConfig
    from lens_caption.quality.pool import CaptionPool
    from lens_core.contracts import CaptionOutcome

__all__ = [
    "Decision",
    "Judgement",
    "JudgeReport",
    "Question",
    "ShardVerdict",
    "decide",
    "judge_captions",
]

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
        calls, input_tokens, output_tokens: what was asked, and what the answers took; earlier runs count.
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


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the judge is asked about one caption.

    Args:
        key: of the image.
        shard: of the image.
        sentences: of the caption, in its order.
        order: the number of the sentence that stands in each place; the one after the caption's is the control.
        statements: what is shown.
    """

    key: str
    shard: str
    sentences: tuple[str, ...]
    order: tuple[int, ...]
    statements: tuple[str, ...]

    @property
    def id(self) -> str:
        """Differs when anything differs that is asked: by it, answers are journalled."""
        asked = json.dumps(self.statements).encode()
        return f"{self.key}-{hashlib.blake2b(asked, digest_size=8).hexdigest()}"

    @property
    def inputs(self) -> dict[str, Any]:
        """For the recipe."""
        return {"statements": [{"number": n, "statement": text} for n, text in enumerate(self.statements, start=1)]}


def decide(clusters: Sequence[tuple[int, int]], captions: int, max_wrong: float) -> tuple[float, float, Decision]:
    """Interval of the share of wrong sentences, and what follows from it.

    Args:
        clusters: wrong and all sentences of each judged caption.
        captions: how many there are; once all of them are judged, the share is known.
        max_wrong: the share that is allowed.
    """
    units = sum(count for _, count in clusters)
    if not units:
        return 0.0, 1.0, "unjudged"
    share = sum(wrong for wrong, _ in clusters) / units
    low, high = (share, share) if len(clusters) == captions else clustered_interval(clusters)
    return low, high, "bad" if low > max_wrong else "good" if high <= max_wrong else "undecided"


def judge_captions(
    pool: CaptionPool,
    ask: Callable[[Sequence[Question]], Mapping[str, CaptionOutcome]],
    recipe: Recipe,
    config: JudgeConfig,
) -> JudgeReport:
    """Judge a sample of every shard, and more of those that are not clearly good.

    Args:
        pool: the captions.
        ask: puts questions to the judge; gives an outcome for each question's id, whose text is the answer as JSON.
            What it raises ends everything.
        recipe: takes the input `statements`, gives `verdicts`.
        config: how much is judged, and what is allowed.
    """
    work = _Work(pool, config)
    while batch := work.next_batch()[: config.max_calls - work.calls]:
        questions = [work.question(key) for key in batch]
        outcomes = ask(questions)
        for question in questions:
            work.take(question, outcomes[question.id])
    return _report(work, config, recipe)


class _Work:
    """What has been drawn, and what was found."""

    def __init__(self, pool: CaptionPool, config: JudgeConfig):
        self.sizes = pool.sizes()
        self.judgements: dict[str, Judgement] = {}
        self.unjudged: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.calls = self.input_tokens = self.output_tokens = 0
        self._drawn = dict.fromkeys(self.sizes, 0)
        self._pool, self._config = pool, config

    def clusters(self, shard: str) -> list[tuple[int, int]]:
        """Wrong and all sentences of each judged caption of a shard."""
        return [(item.wrong, len(item.verdicts)) for item in self.judgements.values() if item.shard == shard]

    def next_batch(self) -> list[str]:
        """The captions to be judged next; none is drawn twice."""
        batch: list[str] = []
        for shard, size in self.sizes.items():
            wanted = min(self._wanted(shard), size - self._drawn[shard], self._config.max_calls)
            batch += self._pool.draw(shard, self._drawn[shard], wanted) if wanted > 0 else []
            self._drawn[shard] += max(0, wanted)
        # Shards in turn, so that a limit on calls does not fall on the last ones alone.
        random.Random(f"{self._config.seed} batch").shuffle(batch)
        return batch

    def question(self, key: str) -> Question:
        """A caption's sentences in an order of their own, and one of another caption among them."""
        text, shard = self._pool.get(key)
        rng = random.Random(f"{self._config.seed} {key} {text}")
        own = sentences(text)
        control = self._foreign_sentence(own, rng) if self._config.controls else None
        shown = [*own, *([control] if control else [])]
        order = list(range(len(shown)))
        rng.shuffle(order)
        statements = tuple(shown[number] for number in order)
        return Question(key=key, shard=shard, sentences=tuple(own), order=tuple(order), statements=statements)

    def take(self, question: Question, outcome: CaptionOutcome) -> None:
        """Note what became of a question."""
        self.calls += 1
        self.input_tokens += int(outcome.provenance.get("input_tokens", 0))
        self.output_tokens += int(outcome.provenance.get("output_tokens", 0))
        if outcome.status != "ok":
            self.unjudged[(outcome.detail or outcome.status)[:120]] += 1
            return
        self.models[str(outcome.provenance.get("served_model", ""))] += 1
        try:
            verdicts = _verdicts(json.loads(outcome.text), len(question.order))
        except AnswerError as error:
            self.unjudged[str(error)] += 1
            return
        place_of = {number: place for place, number in enumerate(question.order)}
        own = len(question.sentences)
        told = [verdicts[place_of[number]] for number in range(own)]
        self.judgements[question.key] = Judgement(
            key=question.key,
            shard=question.shard,
            sentences=question.sentences,
            verdicts=tuple(verdict for verdict, _ in told),
            reasons=tuple(reason if verdict == "contradicted" else "" for verdict, reason in told),
            places=tuple(place_of[number] for number in range(own)),
            control=verdicts[place_of[own]][0] == "contradicted" if own in place_of else None,
        )

    def _wanted(self, shard: str) -> int:
        """How many more captions of a shard are to be judged."""
        done, config = self.clusters(shard), self._config
        if not done:
            # Also after a first round without a single verdict, but not for ever.
            return config.sample if sum(self.unjudged.values()) < config.max_sample else 0
        _, _, decision = decide(done, self.sizes[shard], config.max_wrong)
        if decision == "bad" and config.escalate:
            return self.sizes[shard]
        return min(len(done), max(0, config.max_sample - len(done))) if decision == "undecided" else 0

    def _foreign_sentence(self, own: list[str], rng: random.Random) -> str | None:
        """A sentence of another caption, in words that this one does not have; None if a few tries find none."""
        taken = {normal(sentence) for sentence in own}
        for _ in range(8):
            found = sentences(self._pool.any_text(str(rng.random())))
            sentence = rng.choice(found) if found else ""
            if sentence and normal(sentence) not in taken:
                return sentence
        return None


def _verdicts(value: Any, count: int) -> list[tuple[Verdict, str]]:
    """Verdict and reason by place.

    Raises:
        AnswerError: a number is missing, repeated or unknown.
    """
    found = {item["number"]: (item["verdict"], " ".join(item["reason"].split())[:200]) for item in value["verdicts"]}
    if len(value["verdicts"]) != count or found.keys() != set(range(1, count + 1)):
        raise AnswerError("the judge did not answer for every sentence exactly once")
    return [found[number] for number in range(1, count + 1)]


def _report(work: _Work, config: JudgeConfig, recipe: Recipe) -> JudgeReport:
    judgements = list(work.judgements.values())
    shards, strata = [], []
    for shard, size in work.sizes.items():
        clusters = work.clusters(shard)
        low, high, decision = decide(clusters, size, config.max_wrong)
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
