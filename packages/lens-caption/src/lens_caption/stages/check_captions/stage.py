"""The stage that checks captions: a layer in, the same layer out without what fails, and the reasons beside it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lens_caption.prompts import load_recipe
from lens_caption.quality.chat import ChatJudge
from lens_caption.quality.check import Checked, Finding, check_rows
from lens_caption.quality.judge import JudgeReport, VerdictCache, judge_captions
from lens_caption.quality.statistics import layer_statistics
from lens_core.errors import ArtifactError, ConfigError, LensError, Stopped
from lens_core.storage.captions import CaptionRow, read_captions, write_captions
from lens_core.storage.shards import ShardReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_caption.quality.config import JudgeConfig
    from lens_caption.stages.check_captions.config import CheckCaptionsConfig
    from lens_core.pipeline.context import StageContext

__all__ = ["run"]

_SHOWN = 20


def run(config: CheckCaptionsConfig, context: StageContext) -> dict[str, Any]:
    """Check the captions and write what is left of them.

    Raises:
        LensError: more captions are rejected than `max_rejected` allows; the commonest reasons are quoted.
        Stopped: the user asked for it; the judge's answers are kept.
    """
    (captions,) = context.inputs
    rows = read_captions(captions)
    _refuse_unknown_layers(config, rows)
    before = sum(row.status == "ok" for row in rows)
    reader = ShardReader(captions.parent("images"))
    names = dict(zip(reader.columns["key"], reader.columns["name"], strict=True))

    def image_of(key: str) -> bytes:
        try:
            return bytes(reader.by_key(key).data)
        except KeyError:
            raise ArtifactError(
                f"{captions.url} has a caption for the image {key}, which is not in its images"
            ) from None

    context.progress.start(len(rows), "captions")
    judged: JudgeReport | None = None
    try:
        checked = check_rows(
            rows,
            config.gates,
            layers=config.layers,
            languages=config.languages,
            image_of=image_of,
            progress=context.progress.update,
        )
        if config.judge:
            shards = dict(zip(reader.columns["key"], reader.columns["shard"], strict=True))
            judged, checked = _judge(config, config.judge, context, checked, image_of, shards)
    finally:
        reader.close()
    _write(context, checked, names, judged)
    return _numbers(config, context, checked, before, judged)


def _judge(
    config: CheckCaptionsConfig,
    judge: JudgeConfig,
    context: StageContext,
    checked: Checked,
    image_of: Callable[[str], bytes],
    shards: dict[str, str],
) -> tuple[JudgeReport, Checked]:
    """Have the first of the checked layers judged, and reject the wrong captions of bad shards."""
    layer = config.layers[0] if config.layers else checked.rows[0].layer
    texts = {row.key: (row.text, shards[row.key]) for row in checked.rows if row.layer == layer and row.status == "ok"}
    cache = VerdictCache(context.state_dir / "verdicts.jsonl")
    context.progress.start(None, "captions judged")
    try:
        recipe = load_recipe(judge.recipe)
        report = judge_captions(
            texts,
            image_of,
            ChatJudge(judge, recipe),
            recipe,
            judge,
            cache=cache,
            should_stop=context.should_stop,
            progress=context.progress.update,
        )
    finally:
        cache.close()
    if context.should_stop():
        raise Stopped(f"stopped after {len(report.judgements)} judgements; the same command goes on from here")
    bad = {shard.shard for shard in report.shards if shard.decision == "bad"} if judge.escalate else set()
    wrong = {item.key: item for item in report.judgements if item.wrong}
    rows, findings = [], list(checked.findings)
    for row in checked.rows:
        item = wrong.get(row.key) if row.layer == layer and row.status == "ok" else None
        if item is None:
            rows.append(row)
            continue
        action = "reject" if item.shard in bad else "flag"
        for sentence, verdict, reason in zip(item.sentences, item.verdicts, item.reasons, strict=True):
            if verdict == "contradicted":
                findings.append(
                    Finding(
                        key=row.key, layer=layer, gate="judge", action=action, reason=reason, excerpt=sentence[:160]
                    )
                )
        detail = f"judge: {item.wrong} of {len(item.verdicts)} sentences are wrong"
        rows.append(replace(row, text="", status="rejected", detail=detail) if action == "reject" else row)
    return report, Checked(rows=rows, findings=findings, shared=checked.shared)


def _write(context: StageContext, checked: Checked, names: dict[str, str], judged: JudgeReport | None) -> None:
    write_captions(context.output, checked.rows)
    findings = [{"name": names.get(item.key, ""), **asdict(item)} for item in checked.findings]
    context.output.write_text("checks.jsonl", _lines(findings))
    failed = [
        {"name": names.get(row.key, ""), "key": row.key, "layer": row.layer, "status": row.status, "detail": row.detail}
        for row in checked.rows
        if row.status != "ok"
    ]
    context.output.write_text("failures.jsonl", _lines(failed))
    shared = {layer: dict(list(found.items())[:_SHOWN]) for layer, found in checked.shared.items()}
    context.output.write_json(
        "statistics.json",
        {"format_version": 1, "layers": layer_statistics(checked.rows), "shared_sentences": shared},
    )
    if judged:
        context.output.write_json("judge.json", {"format_version": 1, **judged.to_json()})
        context.output.write_text("judgements.jsonl", _lines([asdict(item) for item in judged.judgements]))


def _numbers(
    config: CheckCaptionsConfig, context: StageContext, checked: Checked, before: int, judged: JudgeReport | None
) -> dict[str, Any]:
    left = sum(row.status == "ok" for row in checked.rows)
    # A caption counts once for each gate, however often it fails it.
    by_gate = Counter(
        (gate, action) for gate, action, *_ in {(f.gate, f.action, f.key, f.layer) for f in checked.findings}
    )
    for (gate, action), count in by_gate.most_common():
        example = next(item for item in checked.findings if item.gate == gate)
        context.progress.note(f"{gate} {action}s {count} of {before}, such as: {example.reason}")
    if judged:
        context.progress.note(
            f"judged {len(judged.judgements)} captions: {judged.share:.1%} of the sentences are wrong "
            f"(95 %: {judged.low:.1%} to {judged.high:.1%}); bad shards: "
            f"{sum(shard.decision == 'bad' for shard in judged.shards)} of {len(judged.shards)}"
        )
    rejected = {gate: count for (gate, action), count in by_gate.items() if action == "reject"}
    flagged = {gate: count for (gate, action), count in by_gate.items() if action == "flag"}
    if before - left > config.max_rejected * before:
        worst = ", ".join(f"{gate} {count}" for gate, count in Counter(rejected).most_common(3))
        raise LensError(
            f"{context.name}: {before - left} of {before} captions are rejected, more than the share of "
            f"{config.max_rejected:g} that max_rejected allows ({worst}); look at them with: lens caption check"
        )
    if before and not left:
        raise LensError(f"{context.name}: not one of {before} captions is left")
    stats: dict[str, Any] = {
        "captions": left,
        "rejected": before - left,
        "by_status": Counter(row.status for row in checked.rows),
        "rejected_by": rejected,
        "flagged_by": flagged,
    }
    if judged:
        stats["judge"] = {
            "wrong_share": round(judged.share, 5),
            "low": round(judged.low, 5),
            "high": round(judged.high, 5),
            "judged": len(judged.judgements),
            "calls": judged.calls,
            "input_tokens": judged.input_tokens,
            "output_tokens": judged.output_tokens,
        }
    return stats


def _refuse_unknown_layers(config: CheckCaptionsConfig, rows: list[CaptionRow]) -> None:
    there = {row.layer for row in rows}
    for key, names in (("layers", config.layers or ()), ("languages", tuple(config.languages))):
        unknown = [name for name in names if name not in there]
        if unknown:
            raise ConfigError(
                f"{config.source} has no caption layer {unknown[0]!r} (it has: {', '.join(sorted(there))})",
                key=f"{config.name}.{key}",
            )


def _lines(items: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
