"""The page's reader of server-sent events, in the browser that runs it: however the bytes are cut."""

from __future__ import annotations

import random

READ = """async ({ cases }) => {
  const { events } = await import("/static/sse.js");
  const all = [];
  for (const pieces of cases) {
    const body = new ReadableStream({
      start(controller) {
        for (const piece of pieces) controller.enqueue(Uint8Array.from(piece));
        controller.close();
      },
    });
    const read = [];
    for await (const event of events(body)) read.push(event);
    all.push(read);
  }
  return all;
}"""

STREAM = """event: a\r
data: {"é": "👩‍🚀"}\r
\r
: image 0 step 1/3
data:no space
data:  two

id: 7

:

retry: 10
data

data: unfinished"""
EXPECTED = [
    {"data": '{"é": "👩‍🚀"}'},
    {"comment": "image 0 step 1/3"},
    {"data": "no space\n two"},
    {"comment": ""},
]


def cut(data, chance):
    pieces = [[]]
    for byte in data:
        if chance.random() < 0.2:
            pieces.append([])
        pieces[-1].append(byte)
    return pieces


def test_events_are_the_same_however_the_bytes_are_cut(live, open_window):
    chance = random.Random(0)
    data = STREAM.encode()
    cases = [[list(data)], [[byte] for byte in data], *(cut(data, chance) for _ in range(200))]
    read = open_window(live.url).page.evaluate(READ, {"cases": cases})
    assert read == [EXPECTED] * len(cases)


def test_leaving_early_cancels_the_body(live, open_window):
    told = open_window(live.url).page.evaluate("""async () => {
      const { events } = await import("/static/sse.js");
      let cancelled = false;
      const body = new ReadableStream({
        start(controller) { controller.enqueue(new TextEncoder().encode("data: 1\\n\\n")); },
        cancel() { cancelled = true; },
      });
      for await (const event of events(body)) break;
      return cancelled;
    }""")
    assert told is True
