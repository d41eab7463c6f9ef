"""A request that comes again: the same answer, a conflict, or a new one."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from lens_serve.api.errors import ApiError
from lens_serve.api.idempotency import Idempotency, body_hash
from lens_serve.api.schemas import Generation
from lens_serve.api.shelf import DAY_S, Shelf
from serve.api.wire import error_of, events_of
from serve.live import SLOW_BOUNDS, live_server, settings_for, wait_until

BODY, OTHER = b"body", b"other body"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@dataclass(eq=False)
class Thing:
    """What a request is answered from."""

    number: int
    finished: bool = True
    good: bool = True
    nbytes: int = 1
    key_id: str = "ann"
    listeners: int = 0
    left: int = 0

    def join(self):
        self.listeners += 1

    def leave(self):
        self.listeners -= 1
        self.left += 1

    async def cancel(self):
        self.good, self.finished = False, True


class Maker:
    """Makes things when it may, and counts."""

    def __init__(self):
        self.made, self.cancelled = 0, 0
        self.may = asyncio.Event()
        self.may.set()
        self.error = None
        self.things = []

    async def __call__(self):
        self.made += 1
        number = self.made
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        self.things.append(Thing(number))
        return self.things[-1]


def idempotency_of(**limits):
    return Idempotency(Shelf(most_bytes=1 << 20, **limits))


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.anyio
async def test_a_key_sent_again_gives_the_same():
    idempotency, make = idempotency_of(), Maker()
    first = await idempotency.once("k", "a", BODY, make)
    assert await idempotency.once("k", "a", BODY, make) is first
    assert await idempotency.once("k", "a", BODY, make, repeated=True) is first
    assert make.made == 1


@pytest.mark.anyio
async def test_another_key_or_owner_gives_another():
    idempotency, make = idempotency_of(), Maker()
    things = [await idempotency.once(*who, BODY, make) for who in (("k", "a"), ("k", "b"), ("l", "a"), ("k", None))]
    assert len({thing.number for thing in things}) == 4
    # a body's hash is no key, though a client may send it as one
    await idempotency.once("k", BODY.hex(), BODY, make)
    assert make.made == 5


@pytest.mark.anyio
@pytest.mark.parametrize("begun", ["under way", "done"])
async def test_the_same_key_with_another_body_is_a_conflict(begun):
    idempotency, make = idempotency_of(), Maker()
    if begun == "under way":
        make.may.clear()
    first = asyncio.create_task(idempotency.once("k", "a", BODY, make))
    await settle()
    with pytest.raises(ApiError) as caught:
        await idempotency.once("k", "a", OTHER, make)
    error = caught.value
    assert (error.status, error.code, error.headers["x-should-retry"]) == (409, "idempotency_conflict", "false")
    make.may.set()
    assert (await first).number == 1
    assert (await idempotency.once("l", "a", OTHER, make)).number == 2


@pytest.mark.anyio
async def test_the_second_waits_for_the_first():
    idempotency, make = idempotency_of(), Maker()
    make.may.clear()
    tasks = [asyncio.create_task(idempotency.once("k", "a", BODY, make)) for _ in range(5)]
    await settle()
    assert make.made == 1
    assert not any(task.done() for task in tasks)
    make.may.set()
    assert len({id(thing) for thing in await asyncio.gather(*tasks)}) == 1


@pytest.mark.anyio
async def test_what_failed_is_tried_anew():
    idempotency, make = idempotency_of(), Maker()
    make.error = ApiError(429, "Too much.", code="queue_full")
    make.may.clear()
    tasks = [asyncio.create_task(idempotency.once("k", "a", BODY, make)) for _ in range(2)]
    await settle()
    make.may.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [make.error] * 2  # both were waiting for it
    make.error = None
    thing = await idempotency.once("k", "a", BODY, make)
    assert thing.number == 2
    thing.good = False  # it failed later
    assert (await idempotency.once("k", "a", BODY, make)).number == 3
    assert (await idempotency.once("k", "a", BODY, make)).number == 3


@pytest.mark.anyio
async def test_with_a_key_it_is_made_though_the_client_goes():
    idempotency, make = idempotency_of(), Maker()
    make.may.clear()
    gone = asyncio.create_task(idempotency.once("k", "a", BODY, make))
    await settle()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    make.may.set()
    await settle()
    assert (await idempotency.once("k", "a", BODY, make)).number == 1
    assert (make.made, make.cancelled, make.things[0].left) == (1, 0, 0)


@pytest.mark.anyio
async def test_without_a_key_it_is_given_up_when_the_client_goes():
    idempotency, make = idempotency_of(), Maker()
    make.may.clear()
    gone = asyncio.create_task(idempotency.once("k", None, BODY, make))
    await settle()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (make.made, make.cancelled) == (1, 1)
    make.may.set()
    assert (await idempotency.once("k", None, BODY, make, repeated=True)).number == 2


@pytest.mark.anyio
async def test_what_was_made_at_the_last_moment_is_left():
    """The client goes in the turn of the loop in which it is done."""
    idempotency, make = idempotency_of(), Maker()
    make.may.clear()
    gone = asyncio.create_task(idempotency.once("k", None, BODY, make))
    await settle()
    make.may.set()
    await asyncio.sleep(0)  # the maker has run, the one who waits has not
    assert len(make.things) == 1
    assert not gone.done()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (make.things[0].listeners, make.things[0].left) == (0, 1)


@pytest.mark.anyio
async def test_equal_requests_without_a_key_are_two():
    idempotency, make = idempotency_of(), Maker()
    make.may.clear()
    tasks = [asyncio.create_task(idempotency.once("k", None, BODY, make)) for _ in range(3)]
    await settle()
    make.may.set()
    assert sorted(thing.number for thing in await asyncio.gather(*tasks)) == [1, 2, 3]


@pytest.mark.anyio
@pytest.mark.parametrize("begun", ["making", "made"])
async def test_a_repetition_joins_what_is_under_way(begun):
    idempotency, make = idempotency_of(), Maker()
    make.may.clear()
    first = asyncio.create_task(idempotency.once("k", None, BODY, make))
    await settle()
    if begun == "made":
        make.may.set()
        (await first).finished = False
    again = asyncio.create_task(idempotency.once("k", None, BODY, make, repeated=True))
    others = [
        asyncio.create_task(idempotency.once("l", None, BODY, make, repeated=True)),
        asyncio.create_task(idempotency.once("k", None, OTHER, make, repeated=True)),
    ]
    await settle()
    make.may.set()
    assert await again is await first
    assert sorted(thing.number for thing in await asyncio.gather(*others)) == [2, 3]


@pytest.mark.anyio
async def test_a_repetition_that_joined_keeps_it_alive():
    idempotency, make = idempotency_of(), Maker()
    make.may.clear()
    gone = asyncio.create_task(idempotency.once("k", None, BODY, make))
    await settle()
    stays = asyncio.create_task(idempotency.once("k", None, BODY, make, repeated=True))
    await settle()
    gone.cancel()
    await settle()
    assert gone.cancelled()
    assert make.cancelled == 0
    make.may.set()
    assert (await stays).number == 1


@pytest.mark.anyio
async def test_a_repetition_of_what_is_over_or_failed_is_new():
    idempotency, make = idempotency_of(), Maker()
    await idempotency.once("k", None, BODY, make)
    await settle()
    make.things.clear()  # whoever was answered from it has gone
    gc.collect()
    thing = await idempotency.once("k", None, BODY, make, repeated=True)
    assert thing.number == 2
    again = await idempotency.once("k", None, BODY, make, repeated=True)  # it is done, though its answer is being read
    assert again.number == 3
    again.good, again.finished = False, False
    assert (await idempotency.once("k", None, BODY, make, repeated=True)).number == 4


@pytest.mark.anyio
async def test_it_is_kept_for_a_day():
    now = [0.0]
    idempotency, make = idempotency_of(clock=lambda: now[0]), Maker()
    await idempotency.once("k", "a", BODY, make)
    now[0] = DAY_S - 1
    assert (await idempotency.once("k", "a", BODY, make)).number == 1
    now[0] = DAY_S
    assert (await idempotency.once("k", "a", OTHER, make)).number == 2  # the key is free again


@pytest.mark.anyio
async def test_stopping_ends_what_goes_on():
    idempotency, make = idempotency_of(), Maker()
    make.may.clear()
    waiting = asyncio.create_task(idempotency.once("k", "a", BODY, make))
    await settle()
    going, done = Maker(), Maker()
    for key, maker in (("b", going), ("c", done)):
        await idempotency.once("k", key, BODY, maker)
    going.things[0].finished = False
    await idempotency.stop()
    assert make.cancelled == 1
    assert (going.things[0].good, done.things[0].good) == (False, True)
    with pytest.raises(asyncio.CancelledError):
        await waiting


# --- the shelf ---


def shelf(*, most=3, most_bytes=100):
    now = [0.0]
    return Shelf(keep_s=10, most=most, most_bytes=most_bytes, clock=lambda: now[0]), now


def numbers(held):
    return [thing.number for thing in held]


@pytest.mark.anyio
async def test_the_oldest_are_forgotten_first():
    held, now = shelf()
    for number in range(5):
        held.put(number, Thing(number))
        now[0] += 1
    assert numbers(held) == [2, 3, 4]
    assert held.get(1) is None
    now[0] = 12.5  # 2 was put there at 2
    assert [held.get(number) is not None for number in (2, 3, 4)] == [False, True, True]


@pytest.mark.anyio
async def test_size_counts_and_grows():
    held, _ = shelf()
    first, second = Thing(1, nbytes=10), Thing(2, nbytes=60, finished=False)
    held.put("first", first)
    held.put("second", second)
    assert numbers(held) == [1, 2]
    second.nbytes = 95
    assert held.get("second") is second
    assert numbers(held) == [2]


@pytest.mark.anyio
async def test_whoever_has_most_loses_first():
    held, _ = shelf(most=4)
    held.put("his", Thing(0, key_id="bob"))
    for number in range(1, 10):
        held.put(number, Thing(number))
    assert numbers(held) == [0, 7, 8, 9]
    held.put("large", Thing(10, key_id="bob", nbytes=99))
    assert held.get("large") is None
    assert numbers(held) == [7, 8, 9]


@pytest.mark.anyio
async def test_the_unfinished_stay():
    held, now = shelf(most=1, most_bytes=1)
    going, done = Thing(1, finished=False, nbytes=50), Thing(2, nbytes=50)
    held.put("going", going)
    now[0] = 60.0
    held.put("done", done)
    assert numbers(held) == [1]
    going.finished = True
    assert held.get("going") is None


@pytest.mark.anyio
async def test_another_of_a_name_takes_its_place():
    held, _ = shelf()
    for number in range(3):
        held.put("one", Thing(number))
    assert numbers(held) == [2]
    held.drop("one")
    held.drop("one")
    assert numbers(held) == []


# --- bodies ---


@pytest.mark.anyio
async def test_bodies_are_equal_however_they_are_written():
    plain = Generation.model_validate_json('{"prompt": "a", "n": 1}')
    spaced = Generation.model_validate_json('{ "n":1,\n "prompt" : "\\u0061", "user": null}')
    assert body_hash("/x", plain) == body_hash("/x", spaced)
    others = ['{"prompt": "a"}', '{"prompt": "a", "n": 2}', '{"prompt": "a", "n": 1, "lens": {"seed": 0}}']
    hashes = {body_hash("/x", Generation.model_validate_json(text)) for text in others}
    assert len({*hashes, body_hash("/x", plain), body_hash("/y", plain)}) == 5


# --- over HTTP ---

URL = "/v1/images/generations"


@pytest.fixture(scope="module")
def client(live):
    with live.http() as client:
        yield client


@pytest.fixture(scope="module")
def slow(tiny_folder):
    """A server that lets requests take long."""
    settings = settings_for(tiny_folder, bounds=SLOW_BOUNDS)
    with live_server(settings) as live, live.http() as client:
        yield live, client


def seeds(*answers):
    return [answer.json()["lens"]["seed"] for answer in answers]


def completed(client, body, **headers):
    with client.stream("POST", URL, json=body | {"stream": True}, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        told = [event["data"] for event in events_of(answer.iter_lines()) if "data" in event]
    return told[-1]


def test_an_answer_comes_again(client):
    body, key = {"prompt": "x", "n": 2}, {"idempotency-key": "again"}
    first, second = (client.post(URL, json=body, headers=key) for _ in range(2))
    assert first.json()["data"] == second.json()["data"]
    assert seeds(first) == seeds(second) != seeds(client.post(URL, json=body))
    refused = client.post(URL, json=body | {"n": 1}, headers=key)
    assert error_of(refused, 409)["code"] == "idempotency_conflict"
    assert refused.headers["x-should-retry"] == "false"
    # as a job, or as a stream, it would be another request
    assert client.post("/v1/images/jobs", json=body, headers=key).status_code == 409
    assert client.post(URL, json=body | {"stream": True}, headers=key).status_code == 409


def test_a_stream_comes_again(client):
    body = {"prompt": "x", "partial_images": 1}
    first, second = (completed(client, body, **{"idempotency-key": "stream"}) for _ in range(2))
    assert first["type"] == "image_generation.completed"
    assert (first["b64_json"], first["lens"]["seed"]) == (second["b64_json"], second["lens"]["seed"])


def test_what_was_refused_is_tried_anew(client):
    key = {"idempotency-key": "refused"}
    hopeless = {"prompt": "x", "n": 4, "size": "64x64", "lens": {"steps": 8, "deadline_ms": 1}}
    for _ in range(2):
        error_of(client.post(URL, json=hopeless, headers=key), 504)
    assert client.post(URL, json={"prompt": "x"}, headers=key).status_code == 200


def test_a_connection_that_drops_pays_once(slow):
    live, client = slow
    drawn = live.count("lens_images_total", model="tiny")
    body, key = {"prompt": "x", "lens": {"steps": 400}}, {"idempotency-key": "drop"}
    with client.stream("POST", URL, json=body | {"stream": True}, headers=key) as answer:
        assert next(answer.iter_lines())  # the first step; then the client is gone
    again = completed(client, body, **key)
    assert again["type"] == "image_generation.completed"
    assert again["lens"]["seed"] == completed(client, body, **key)["lens"]["seed"]
    wait_until(lambda: live.rests, "the engine")
    assert live.count("lens_images_total", model="tiny") == drawn + 1


@pytest.mark.parametrize(("retries", "joins"), [("1", True), ("0", False)])
def test_a_repetition_of_openais_client_joins_the_first(slow, retries, joins):
    live, client = slow
    body = {"prompt": "x", "size": "64x64", "lens": {"steps": 500}}
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(client.post, URL, json=body)
        wait_until(lambda: live.jobs == 1, "the first")
        again = threads.submit(client.post, URL, json=body, headers={"x-stainless-retry-count": retries})
        if not joins:
            wait_until(lambda: live.jobs == 2, "the other")
        first, again = first.result(), again.result()
    assert (seeds(first) == seeds(again)) == joins


def test_openais_client_sends_keys(live):
    with live.openai() as client:
        drawn = [
            client.images.generate(prompt="x", extra_headers={"Idempotency-Key": "sdk"}).data[0].b64_json
            for _ in range(2)
        ]
    assert drawn[0] == drawn[1]
