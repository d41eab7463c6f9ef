"""A fake OpenAI server on a real socket, for tests and for rehearsing a pipeline without a bill.

It decodes every image and makes the caption from its pixels, so that an answer about the wrong image shows; it refuses
requests that the real API would refuse; it keeps a ledger of what it billed for; it runs batches on a clock that can be
turned; and it fails on request, or at a rate.

    python -m lens_caption.testing.openai_server --port 8000 --rate 0.02 --rpm 500 --ledger ledger.jsonl

    with FakeServer(faults=["429", "ok"], rpm=500, tpm=200_000) as server:
        ...  # base_url=server.url
        server.ledger.total_cost()  # dollars, by the server's own price table

**What it says.** The caption of an image is `caption_of(pixels)`: its size, the mean colours of its quarters and, for
images made by `numbered_image(n, width, height)`, "number n", which survives scaling and JPEG. `number_in_text(text)`
reads it back: `assert number_in_text(outcome.text) == n` fails for every mix-up of image, id, shard or order.

**FakeServer(…)**, a context manager; everything is optional:
    faults         names from `FAULTS`, met by successive requests in this order; or a `Faults` (rate, seed, …)
    api_key        what requests must carry (`Authorization: Bearer`, or `api-key` as on Azure)
    delay_s, jitter   seconds before an answer; and the share of it that varies by image
    rpm, tpm       limits per model (`Limits` says more: window, quantum, refund, retry_after)
    clock          "real" (default), a speed such as 600.0, or "manual"; only batches and files live by it
    batches        `BatchSettings`: durations, limits, enqueued tokens, shuffling
    ledger_path    a JSON Lines file that survives the server; a new server on it goes on
    words          about how many words a caption has (0: the plain one)
    like, prices   {"my-model": "gpt-4.1"}; {"my-model": ("2.00", "8.00")} dollars per million tokens in and out
    look           "pixels"; for benchmarks "draft" (JPEGs decoded small: numbers are still read) or "header" (sizes
                   only, and a caption from the hash of the file)
    prefix_cache   answers are cached by the first 1,000 characters of base64, as a buggy server did
    max_data_url_chars   65520 behaves as Azure's responses API does
    azure          `Azure()` speaks Azure's dialect, at /openai/v1 and at /openai/deployments/NAME with `api-version`;
                   `Azure(filters={3})` lets its content filter refuse the image that bears the number 3
    quota          dollars after which every request meets `insufficient_quota`
and then
    .url           what to set as `base_url`
    .ledger        a sequence of `LedgerEntry(image, custom_id, model, tier, input_tokens, output_tokens, cost, …)`
                   in the order of billing, with .images() -> Counter by sha256 of the file sent, .custom_ids(),
                   .billed_again(), .input_tokens(), .output_tokens(), .total_cost()
    .faults        `Faults`; .faults.extend([...]), .faults.always[n or sha256] = name, .faults.met counts by name
    .clock         `Clock`; .clock.advance(3600) on a manual one runs the batches up to then, before it returns
    .batches       `BatchStore`; .batches.all() as JSON objects
    .requests, .in_flight   how many requests for answers came in, and how many are being answered now

A request whose client has gone is answered, and billed, all the same. `custom_id` in the ledger is that of a batch's
line, or the header `X-Client-Request-Id`. Limits use up `input + max output` tokens when a request is admitted, and
give back what was not needed when it is answered (`Limits(refund=False)` keeps it).

**ServerProcess("--rpm", "500", …)** is the same in a process of its own, for benchmarks and long kill tests: `.url`,
`.ask("/_ledger")`, `.ask("/_clock", {"advance": 60})`, `.stop()`.

**Over HTTP**: `GET /_ledger` (totals; `?entries=1`, `?image=`, `?custom_id=`), `GET /_ledger/images`, `GET /_state`,
`GET /_clock`, `POST /_clock {"advance": 3600}`, `POST /_faults {"script": ["500"], "rate": 0.1}`.
"""

from __future__ import annotations

from lens_caption.testing.openai_server.azure import Azure
from lens_caption.testing.openai_server.batches import BatchSettings, BatchStore
from lens_caption.testing.openai_server.clock import Clock
from lens_caption.testing.openai_server.command import main
from lens_caption.testing.openai_server.faults import BATCH_FAULTS, CONTROL_FAULTS, FAULTS, Faults
from lens_caption.testing.openai_server.ledger import Ledger, LedgerEntry
from lens_caption.testing.openai_server.limits import Limits, go_duration
from lens_caption.testing.openai_server.pixels import (
    caption_of,
    number_in_text,
    number_of,
    numbered_image,
    numbered_jpeg,
)
from lens_caption.testing.openai_server.process import ServerProcess
from lens_caption.testing.openai_server.server import FakeServer

__all__ = [
    "Azure",
    "BATCH_FAULTS",
    "BatchSettings",
    "BatchStore",
    "CONTROL_FAULTS",
    "Clock",
    "FAULTS",
    "FakeServer",
    "Faults",
    "Ledger",
    "LedgerEntry",
    "Limits",
    "OpenAIServer",
    "ServerProcess",
    "caption_of",
    "go_duration",
    "main",
    "number_in_text",
    "number_of",
    "numbered_image",
    "numbered_jpeg",
]

OpenAIServer = FakeServer
"""The name of the first days."""
