"""Profiles, quotes and probes as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lens_caption.profiles import LANES, Lane, Profile

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterable
    from decimal import Decimal

    from rich.console import RenderableType

    from lens_caption.probe import ProbeReport
    from lens_caption.quote.estimate import Quote, Range

__all__ = ["money", "print_probe", "print_profiles", "print_quotes"]


def print_quotes(quotes: Iterable[Quote], console: Console | None = None) -> None:
    """Print quotes, one below the other."""
    console = console or _console()
    for quote in quotes:
        console.print(Group(*_quote(quote)), soft_wrap=True)


def print_profiles(profiles: Iterable[Profile], today: datetime.date, console: Console | None = None) -> None:
    """Print what is known of models, and what is soon gone."""
    console = console or _console()
    listed = list(profiles)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("model", "standard", "flex", "batch", "1024x1024", "checked", "shutdown"):
        table.add_column(name, no_wrap=name != "shutdown")
    for profile in listed:
        prices = [_price(profile, lane) for lane in LANES]
        tokens = f"{profile.image_tokens(1024, 1024):,}" + ("?" if "image_rule" in profile.weak else "")
        table.add_row(profile.model, *prices, tokens, str(profile.checked), _end(profile, today))
    console.print(table, soft_wrap=True)
    console.print(
        "Dollars per million input/output tokens; 1024x1024: input tokens of such an image; ?: not sure, see below.",
        soft_wrap=True,
    )
    for profile in listed:
        for field, why in profile.weak.items():
            console.print(f"{profile.model}: {field}: {why}", soft_wrap=True)


def print_probe(report: ProbeReport, console: Console | None = None) -> None:
    """Print what an endpoint said, and how it compares with the profile."""
    console = console or _console()
    facts = report.to_json()
    usage, latency, fit = facts["usage"], facts["latency_s"], report.calibration
    table = Table.grid(padding=(0, 2))
    table.add_row("endpoint", report.endpoint)
    served = ", ".join(facts["served_models"]) or "unknown"
    table.add_row("model", f"asked {report.profile.model}, served {served}, by {_source(report.profile)}")
    table.add_row("tier", ", ".join(facts["service_tiers"]) or "not named")
    table.add_row("answers", f"{facts['answers']} of {facts['requests']}")
    for error, count in facts["errors"].items():
        table.add_row("", f"{count} times {error}")
    limits = ", ".join(f"{name} {value}" for name, value in report.limits.items())
    table.add_row("limits", limits or "no x-ratelimit headers")
    if facts["answers"]:
        table.add_row("latency", f"median {latency['median']:.2f} s, longest {latency['longest']:.2f} s")
        cached = f", {usage['cached_input_tokens']:,} of the input cached" if usage["cached_input_tokens"] else ""
        table.add_row("usage", f"{usage['input_tokens']:,} input, {usage['output_tokens']:,} output{cached}")
    if fit:
        factor = f"{fit.factor:.3f} tokens billed per token of the profile's rule" if fit.known else "too few shapes"
        table.add_row("images", f"{factor}, {fit.text_tokens:,.0f} tokens of text, unexplained {fit.spread:.1%}")
    table.add_row("cost", f"{money(report.dollars)} by the profile's price")
    console.print(table, soft_wrap=True)
    for line in report.findings:
        console.print(f"note: {line}", soft_wrap=True)


def _console() -> Console:
    """As wide as the terminal; in a file or a pipe, wide enough that nothing is cut. A bracket is only a bracket."""
    width = None if Console().is_terminal else 160
    return Console(highlight=False, markup=False, emoji=False, width=width)


def money(dollars: Decimal | float) -> str:
    """Dollars for people: cents where they matter, and more digits below a cent."""
    value = float(dollars)
    if value == 0:
        return "$0"
    digits = 0 if value >= 1000 else 2 if value >= 0.1 else 4
    return f"${value:,.{digits}f}"


def _quote(quote: Quote) -> list[RenderableType]:
    profile = quote.profile
    dropped = ", ".join(f"{step} {count:,}" for step, count in quote.dropped.items())
    facts = Table.grid(padding=(0, 2))
    facts.add_row("model", f"{profile.model}, by {_source(profile)}")
    facts.add_row("images", f"{quote.images:,}" + (f" (dropped: {dropped})" if dropped else ""))
    per_image = quote.input_tokens.expected / quote.images
    per_picture = quote.image_tokens / quote.images
    facts.add_row(
        "input",
        f"{_about(quote.input_tokens)} tokens, {per_image:,.0f} an image, of which {per_picture:,.0f} for the picture "
        f"at max_side {quote.max_side}",
    )
    facts.add_row(
        "output", f"{_about(quote.output_tokens)} tokens, {quote.output_tokens.expected / quote.images:,.0f} an image"
    )
    facts.add_row(
        "batch", f"{quote.batch_files:,} {_plural('file', quote.batch_files)}, {_bytes(quote.batch_bytes)} to upload"
    )
    if pilot := quote.pilot:
        answers, rate = len(pilot.answers), 60 * len(pilot.answers) / max(pilot.seconds, 1e-9)
        spent = f"{answers} answers in {pilot.seconds:.1f} s ({rate:,.0f} a minute) for {money(pilot.dollars)}"
        facts.add_row("pilot", spent)
    parts: list[RenderableType] = [Text(quote.stage, style="bold"), facts, _lanes(quote)]
    if quote.resizes:
        parts += [Text("the same images at another max_side:"), _resizes(quote)]
    parts += [Text(f"note: {line}") for line in quote.warnings]
    return parts


def _source(profile: Profile) -> str:
    return f"a profile of {profile.checked} ({profile.file})"


def _lanes(quote: Quote) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("lane", "dollars", "from", "to", "at most", "time"):
        table.add_column(name, justify="left" if name in {"lane", "time"} else "right", no_wrap=True)
    for lane, offer in quote.lanes.items():
        if offer is None:
            table.add_row(lane, "price not known", "", "", "", "")
            continue
        amounts = [money(value) for value in (offer.dollars, offer.low, offer.high, offer.at_most)]
        table.add_row(lane, *amounts, _time(lane, offer.hours))
    return table


def _resizes(quote: Quote) -> Table:
    lane: Lane = next((lane for lane in LANES if lane in quote.profile.prices), "standard")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("max_side", "pixels", "input tokens", f"dollars ({lane})"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in quote.resizes:
        dollars = money(item.dollars[lane]) if lane in item.dollars else "price not known"
        table.add_row(str(item.max_side), f"{item.pixels:.0%}", f"{item.input_tokens:,}", dollars)
    return table


def _about(value: Range) -> str:
    if round(value.low) == round(value.high):
        return f"{value.expected:,.0f}"
    return f"{value.expected:,.0f} ({value.low:,.0f} to {value.high:,.0f})"


def _time(lane: Lane, hours: float | None) -> str:
    if hours is None:
        return "unknown: give --rpm and --tpm (lens caption probe tells them)"
    if lane == "batch":
        return f"up to {hours:,.0f} h"
    if hours < 1:
        return f"{max(1, round(hours * 60))} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


def _price(profile: Profile, lane: Lane) -> str:
    price = profile.prices.get(lane)
    if price is None:
        return "-"
    shown = f"{price.input_per_million.normalize():f}/{price.output_per_million.normalize():f}"
    return shown + ("?" if "prices" in profile.weak else "")


def _end(profile: Profile, today: datetime.date) -> str:
    if profile.shutdown is None:
        return ""
    days = (profile.shutdown - today).days
    instead = f", then {profile.successor}" if profile.successor else ""
    return f"{profile.shutdown} ({'gone' if days <= 0 else f'in {days} days'}){instead}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
