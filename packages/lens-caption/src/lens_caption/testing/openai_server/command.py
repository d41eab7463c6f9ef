"""The command line."""

from __future__ import annotations

import argparse
import signal
import threading
from typing import TYPE_CHECKING, get_args

from lens_caption.testing.openai_server.azure import Azure
from lens_caption.testing.openai_server.batches import BatchSettings
from lens_caption.testing.openai_server.faults import BATCH_FAULTS, CONTROL_FAULTS, FAULTS, GROUPS, Faults
from lens_caption.testing.openai_server.limits import Limits, RetryAfter
from lens_caption.testing.openai_server.model import Look
from lens_caption.testing.openai_server.server import FakeServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        server = _server(options)
    except (ValueError, KeyError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot listen on port {options.port} or write the ledger: {error.strerror or error}")
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    with server:
        print(f"listening on {server.url}", flush=True)
        end.wait()
        totals = server.ledger.totals()
        cost = "unknown" if totals["cost"] is None else f"${totals['cost']}"
        print(f"{server.requests} requests, {totals['billed']} billed, cost {cost}", flush=True)


def _server(options: argparse.Namespace) -> FakeServer:
    faults = Faults(
        options.faults,
        rate=options.rate,
        seed=options.seed,
        kinds=options.kinds,
        always=dict(options.always),
        batch_script=options.batch_faults,
        batch_rate=options.batch_rate,
        batch_kinds=options.batch_kinds,
        control_script=options.control_faults,
        control_rate=options.control_rate,
        flex_rate=options.flex_unavailable,
    )
    limits = Limits(
        options.rpm,
        options.tpm,
        window_s=options.window,
        quantum_s=options.quantum,
        refund=not options.no_refund,
        retry_after=options.retry_after,
    )
    batches = BatchSettings(
        validate_s=options.validate,
        process_s=options.process,
        finalize_s=options.finalize,
        shuffle=not options.in_order,
        max_requests=options.max_requests,
        max_bytes=options.max_bytes,
        enqueued_tokens=options.enqueued_tokens,
    )
    return FakeServer(
        port=options.port,
        api_key=options.api_key,
        faults=faults,
        delay_s=options.delay,
        jitter=options.jitter,
        limits=limits,
        clock=options.clock,
        batches=batches,
        ledger_path=options.ledger,
        words=options.words,
        like=dict(options.like),
        prices={name: (price.partition("/")[0], price.partition("/")[2]) for name, price in options.price},
        look=options.look,
        prefix_cache=options.prefix_cache,
        max_data_url_chars=options.max_data_url_chars,
        quota=options.quota,
        allow=options.allow,
        text_only=options.text_only,
        retired=options.retired,
        azure=Azure(filters=frozenset(options.azure_filters)) if options.azure or options.azure_filters else None,
        slow_s=options.slow,
        drip_s=options.drip,
        hang_s=options.hang,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lens_caption.testing.openai_server",
        description="A fake OpenAI server on this machine: looks at the pixels, keeps a ledger, fails on request.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=8000, help="0 takes a free one")
    add("--api-key", help="what requests must carry")
    add("--ledger", metavar="FILE", help="keep the ledger in a JSON Lines file, and go on with one that is there")

    add = parser.add_argument_group("answers").add_argument
    add("--delay", type=float, default=0.0, help="seconds before an answer")
    add("--jitter", type=float, default=0.0, help="by which share of the delay it varies")
    add("--words", type=int, default=0, help="about how many words a caption has; 0: the plain one")
    add("--like", type=_pair, action="append", default=[], metavar="MODEL=KNOWN", help="count and charge as for KNOWN")
    add("--price", type=_price, action="append", default=[], metavar="MODEL=IN/OUT", help="dollars per million tokens")
    add("--look", choices=get_args(Look), default="pixels", help="draft and header spare work, for benchmarks")
    add("--allow", type=_list, default=[], metavar="NAMES", help="parameters that are accepted and ignored")
    add("--text-only", action="store_true", help="take requests without an image")
    add("--retired", type=_list, default=[], metavar="NAMES", help="models that are gone")
    add("--azure", action="store_true", help="speak as Azure does: addresses, key, api-version, errors")
    add("--azure-filters", type=_numbers, default=[], metavar="NUMBERS", help="images that its content filter refuses")
    add("--prefix-cache", action="store_true", help="mix up images that begin alike, as a buggy server did")
    add("--max-data-url-chars", type=int, metavar="N", help="65520 behaves as Azure's responses API does")

    add = parser.add_argument_group("limits").add_argument
    add("--rpm", type=float, help="requests per minute and model")
    add("--tpm", type=float, help="tokens per minute and model")
    add("--window", type=float, default=60.0, help="seconds' worth that may be used at once")
    add("--quantum", type=float, help="refill in steps of so many seconds")
    add("--no-refund", action="store_true", help="keep what was reserved for an answer and not used")
    add("--retry-after", choices=get_args(RetryAfter), default="both", help="how a 429 says when to come back")
    add("--quota", type=float, help="dollars after which every request meets insufficient_quota")
    add("--flex-unavailable", type=float, default=0.0, metavar="RATE", help="share of flex requests without resources")

    add = parser.add_argument_group(
        "faults", f"Faults are: {', '.join(FAULTS)}. Groups: {', '.join(GROUPS)}."
    ).add_argument
    add("--faults", type=_list, default=[], metavar="NAMES", help="what the first requests meet, comma-separated")
    add("--rate", type=float, default=0.0, help="share of the requests that meet a fault")
    add("--kinds", type=_list, default=["passing"], metavar="NAMES", help="which faults or groups those are")
    add("--seed", type=int, default=0, help="decides which requests meet what")
    add("--always", type=_always, action="append", default=[], metavar="IMAGE=NAME", help="by number or sha256")
    add("--slow", type=float, default=1.0, help="seconds of the fault slow")
    add("--drip", type=float, default=2.0, help="seconds of the fault slow-drip")
    add("--hang", type=float, default=600.0, help="seconds of the fault hang")

    about = f"Faults of batches: {', '.join(BATCH_FAULTS)}. Of uploads and control: {', '.join(CONTROL_FAULTS)}."
    add = parser.add_argument_group("batches", about).add_argument
    add("--clock", default="real", help="real, manual (POST /_clock turns it), or seconds per second, such as 600")
    add("--validate", type=float, default=0.2, help="seconds of that clock in validating")
    add("--process", type=float, default=1.0, help="seconds in in_progress; over 86400, batches expire")
    add("--finalize", type=float, default=0.1, help="seconds in finalizing")
    add("--in-order", action="store_true", help="do not shuffle results")
    add("--max-requests", type=int, default=50_000, help="the most lines of a batch")
    add("--max-bytes", type=int, default=200_000_000, help="the most bytes of its file")
    add("--enqueued-tokens", type=int, help="the most input tokens of unfinished batches per model")
    add("--batch-faults", type=_list, default=[], metavar="NAMES", help="what the first batches meet")
    add("--batch-rate", type=float, default=0.0, help="share of the batches that meet a fault")
    add("--batch-kinds", type=_list, default=["expired", "partly-failed", "all-failed"], metavar="NAMES", help="which")
    add("--control-faults", type=_list, default=[], metavar="NAMES", help="what the first such requests meet")
    add("--control-rate", type=float, default=0.0, help="share of such requests that meet a fault")
    return parser


def _list(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    return [int(name) for name in _list(text)]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _price(text: str) -> tuple[str, str]:
    name, value = _pair(text)
    numbers: Sequence[str] = value.split("/")
    check: Callable[[str], bool] = lambda number: number.replace(".", "", 1).isdigit()  # noqa: E731
    if len(numbers) != 2 or not all(map(check, numbers)):
        raise argparse.ArgumentTypeError(f"{value!r} is not dollars as IN/OUT, such as 2.00/8.00")
    return name, value


def _always(text: str) -> tuple[int | str, str]:
    image, name = _pair(text)
    return (int(image) if image.isdigit() and len(image) < 64 else image), name
