"""The stage that checks captions: a layer in, the same layer out without what fails, and the reasons beside it.

Rows pass through one by one, twice: what many captions share is counted first. A judge comes between gates and table.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lens_caption.captioners.own import seen_from
from lens_caption.layers import ImageLookup, caption_rows, layer_names
from lens_caption.quality.check import Check, Finding, flagged
from lens_caption.quality.pool import CaptionPool
from lens_caption.quality.text import printable
from lens_caption.stages.check_captions.tally import Tally
from lens_core.errors import ConfigError, LensError
from lens_core.storage.artifacts import Artifact, OutputFolder
from lens_core.storage.captions import CaptionRow, write_captions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from lens_caption.quality.config import JudgeConfig
    from lens_caption.quality.judge import JudgeReport
    from lens_caption.stages.check_captions.config import CheckCaptionsConfig
    from lens_core.pipeline.context import StageContext

__all__ = ["run"]

_SHOWN = 20
_Judged = tuple["JudgeReport", dict[str, Any]]
"""What the judge found, and what it cost."""


def run(config: CheckCaptionsConfig, context: StageContext) -> dict[str, Any]:
    """Check the captions and write what is left of them.

    Raises:
        LensError: more captions are rejected than `max_rejected` allows; the commonest reasons are quoted.
        Stopped: the judge's budget is used up, or the user asked for it; the judge's answers are kept.
    """
    (captions,) = context.inputs
    layers = layer_names(captions)
    _refuse_unknown_layers(config, layers)
    folder = context.output.local_dir("check")
    images = ImageLookup(folder / "images.sqlite", captions.parent("images"))
    tally = Tally(folder, images)
    try:
        check = Check(
            lambda: caption_rows(captions),
            config.gates,
            folder,
            layers=config.layers,
            languages=config.languages,
            image_of=images.data,
        )
        judged = None
        rows = _through(check, tally, context)
        if config.judge and layers:
            layer = config.layers[0] if config.layers else layers[0]
            judged, rows = _judged(layer, config.judge, context, rows, images, folder, tally)
        write_captions(context.output, tally.passing(rows))
    finally:
        images.close()
        tally.close()
    tally.publish(context.output)
    _write(context, check, tally, judged)
    return _numbers(config, context, tally, judged)


def _through(check: Check, tally: Tally, context: StageContext) -> Iterator[CaptionRow]:
    context.progress.start(None, "captions")
    number = 0
    for number, (row, findings) in enumerate(check, start=1):
        tally.gated(row, findings)
        if number % 1000 == 0:
            context.progress.update(number)
            context.stop_if_asked()
        yield row
    context.progress.update(number)


def _judged(
    layer: str,
    judge: JudgeConfig,
    context: StageContext,
    rows: Iterable[CaptionRow],
    images: ImageLookup,
    folder: Path,
    tally: Tally,
) -> tuple[_Judged, Iterator[CaptionRow]]:
    """Have a layer judged; what the gates left of all layers waits in a table of its own meanwhile."""
    context.registry.require_libraries("captioners", "openai")
    from lens_caption.quality.judging import run_judge  # noqa: PLC0415 (only a judge needs the libraries for HTTP)

    waiting = OutputFolder(str(folder / "waiting"), folder / "scratch")
    pool = CaptionPool(folder / "pool.sqlite", judge.seed)
    try:
        write_captions(waiting, _into(pool, layer, images, rows))
        report, cost = run_judge(pool, images.data, seen_from(judge, context.base), context)
    finally:
        pool.close()
    return (report, cost), _after_judge(Artifact(waiting.url, {}), layer, report, judge, tally)


def _into(pool: CaptionPool, layer: str, images: ImageLookup, rows: Iterable[CaptionRow]) -> Iterator[CaptionRow]:
    for row in rows:
        if row.layer == layer and row.status == "ok":
            place = images.row(row.key)
            pool.add(row.key, row.text, place["shard"] if place else "")
        yield row


def _after_judge(
    waiting: Artifact, layer: str, report: JudgeReport, judge: JudgeConfig, tally: Tally
) -> Iterator[CaptionRow]:
    """The rows again, without the wrong captions of bad shards; those of other shards are flagged."""
    bad = {shard.shard for shard in report.shards if shard.decision == "bad"} if judge.escalate else set()
    wrong = {item.key: item for item in report.judgements if item.wrong}
    for row in caption_rows(waiting):
        item = wrong.get(row.key) if row.layer == layer and row.status == "ok" else None
        if item is None:
            yield row
            continue
        action = "reject" if item.shard in bad else "flag"
        tally.find(
            Finding(key=row.key, layer=layer, gate="judge", action=action, reason=reason, excerpt=sentence[:160])
            for sentence, verdict, reason in zip(item.sentences, item.verdicts, item.reasons, strict=True)
            if verdict == "contradicted"
        )
        if action == "flag":
            yield replace(row, provenance=flagged(row.provenance, ["judge"]))
        else:
            detail = f"judge: {item.wrong} of {len(item.verdicts)} sentences are wrong"
            yield replace(row, text="", status="rejected", detail=detail)


def _write(context: StageContext, check: Check, tally: Tally, judged: _Judged | None) -> None:
    shared = {layer: dict(list(found.items())[:_SHOWN]) for layer, found in check.shared.items()}
    context.output.write_json(
        "statistics.json",
        {"format_version": 1, "layers": tally.statistics.to_json(), "shared_sentences": shared},
    )
    if judged:
        report, _ = judged
        context.output.write_json("judge.json", {"format_version": 1, **report.to_json()})
        lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in report.judgements)
        context.output.write_text("judgements.jsonl", "".join(lines))


def _numbers(
    config: CheckCaptionsConfig, context: StageContext, tally: Tally, judged: _Judged | None
) -> dict[str, Any]:
    before, left = tally.before, tally.by_status["ok"]
    rejected = before - left
    for (gate, action), count in tally.by_gate.most_common():
        example = printable(tally.examples[gate])
        context.progress.note(f"{gate} {action}s {count} of {before}, such as: {example}")
    if judged:
        report, _ = judged
        context.progress.note(
            f"judged {len(report.judgements)} captions: {report.share:.1%} of the sentences are wrong "
            f"(95 %: {report.low:.1%} to {report.high:.1%}); bad shards: "
            f"{sum(shard.decision == 'bad' for shard in report.shards)} of {len(report.shards)}"
        )
    if rejected > config.max_rejected * before:
        worst = ", ".join(f"{gate} {count}" for gate, count in Counter(tally.by("reject")).most_common(3))
        raise LensError(
            f"{context.name}: {rejected} of {before} captions are rejected, more than the share of "
            f"{config.max_rejected:g} that max_rejected allows ({worst}); look at them with: lens caption check"
        )
    if before and not left:
        raise LensError(f"{context.name}: not one of {before} captions is left")
    stats: dict[str, Any] = {
        "captions": left,
        "rejected": rejected,
        "by_status": tally.by_status,
        "rejected_by": tally.by("reject"),
        "flagged_by": tally.by("flag"),
    }
    if judged:
        report, cost = judged
        stats["judge"] = {
            "wrong_share": round(report.share, 5),
            "low": round(report.low, 5),
            "high": round(report.high, 5),
            "judged": len(report.judgements),
            "calls": report.calls,
            "input_tokens": report.input_tokens,
            "output_tokens": report.output_tokens,
            **cost,
        }
    return stats


def _refuse_unknown_layers(config: CheckCaptionsConfig, there: list[str]) -> None:
    for key, names in (("layers", config.layers or ()), ("languages", tuple(config.languages))):
        unknown = [name for name in names if name not in there]
        if unknown:
            raise ConfigError(
                f"{config.source} has no caption layer {unknown[0]!r} (it has: {', '.join(sorted(there))})",
                key=f"{config.name}.{key}",
            )
