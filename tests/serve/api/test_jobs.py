"""Jobs: drawn whether anybody waits or not, watched by many, cut off and resumed, and forgotten in time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import socket
import traceback
import weakref
from dataclasses import replace

import pytest

from lens_serve.admission.keys import ANONYMOUS
from lens_serve.api import sending
from lens_serve.api.errors import ApiError
from lens_serve.api.fulfilment import PictureEvent, PreviewEvent, Started, StepEvent
from lens_serve.api.idempotency import Idempotency
from lens_serve.api.jobs import Jobs
from lens_serve.api.orders import Order
from lens_serve.api.places import Place
from lens_serve.api.recording import Recording
from lens_serve.api.shelf import Shelf
from lens_serve.engine.messages import ModelInfo
from lens_serve.rewriting import Rewritten
from serve.api.wire import error_of, events_of, pixels
from serve.live import ENDLESS, SLOW_BOUNDS, WAIT_S, live_server, settings_for, wait_until
from serve.models import SIDE

PATH = "/v1/images/jobs"
MODEL = ModelInfo(name="m", hash=None, height=64, width=64, stride=16, steps=2, guidance=1.0, dtype="float32")


@pytest.fixture
def anyio_backend():
    return "asyncio"


def order(**changes):
    made = Order(
        key=ANONYMOUS,
        model=MODEL,
        prompt="x",
        negative="",
        n=1,
        height=64,
        width=64,
        seed=0,
        steps=2,
        guidance=1.0,
        tier="exact",
        lora=None,
        lora_scale=1.0,
        rewrite=None,
        rewrite_seed=0,
        quality="medium",
        format="png",
        compression=None,
        url=False,
        previews=0,
        deadline=None,
        user=None,
        place=Place(),
        start=None,
    )
    return replace(made, **changes)


class Drawing:
    """The events of an order, one each time the test says so; an exception among them is raised."""

    def __init__(self, *events):
        self.events = [Started(Rewritten(text="x", outcome="off")), *events]
        self.turn = asyncio.Semaphore(0)
        self.closed = False

    async def __aiter__(self):
        try:
            for event in self.events:
                await self.turn.acquire()
                if isinstance(event, Exception):
                    raise event
                yield event
            await self.turn.acquire()
        finally:
            await asyncio.sleep(0)  # as when tasks are waited for
            self.closed = True

    def go(self, turns=1):
        for _ in range(turns):
            self.turn.release()


def picture(index=0, size=100):
    return PictureEvent(index, b"p" * size, None, {"seed": 0}, "x", 1)


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


# --- recordings ---


async def _read(recording, into):
    async for event in recording.read():
        into.append(event)


@pytest.mark.anyio
async def test_every_reader_hears_everything():
    drawing = Drawing(StepEvent(0, 1, 2), StepEvent(0, 2, 2), picture())
    drawing.go(2)
    recording = await Recording.begin(order(), aiter(drawing))
    heard = [[], []]

    early = asyncio.create_task(_read(recording, heard[0]))
    await settle()
    assert heard[0] == drawing.events[:2]
    assert recording.started is drawing.events[0]
    drawing.go(3)
    await early
    await _read(recording, heard[1])
    assert heard[0] == heard[1] == drawing.events
    assert recording.finished
    assert recording.good
    assert drawing.closed
    assert recording.nbytes == 4 * 256 + 100


@pytest.mark.anyio
async def test_what_fails_before_it_begins_leaves_nothing():
    drawing = Drawing()
    drawing.events = [ApiError(429, "No.", code="queue_full")]
    drawing.go()
    with pytest.raises(ApiError, match="No"):
        await Recording.begin(order(), aiter(drawing))
    assert drawing.closed


@pytest.mark.anyio
async def test_what_fails_later_is_told_to_every_reader():
    drawing = Drawing(StepEvent(0, 1, 2), ApiError(500, "Broken.", code="internal"))
    drawing.go(3)
    recording = await Recording.begin(order(), aiter(drawing))
    for _ in range(2):
        heard = []
        with pytest.raises(ApiError, match="Broken"):
            await _read(recording, heard)
        assert heard == drawing.events[:2]
    assert not recording.good
    assert drawing.closed


@pytest.mark.anyio
@pytest.mark.parametrize("kept", [False, True])
async def test_a_failure_that_is_kept_holds_no_pictures_and_grows_with_no_reader(kept):
    class Pixels:
        pass

    alive = []

    async def failing():
        yield Started(Rewritten(text="x", outcome="off"))
        pixels = Pixels()
        alive.append(weakref.ref(pixels))
        try:
            raise KeyError(pixels)
        except KeyError as error:
            raise ApiError(500, "Broken.", code="internal") from error

    recording = await Recording.begin(order(), failing(), kept=kept)
    await settle()
    lengths = []
    for _ in range(3):
        with pytest.raises(ApiError, match="Broken") as caught:
            await _read(recording, [])
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
        del caught
    assert len(set(lengths)) == 1
    gc.collect()
    assert (alive[0]() is None) == kept  # otherwise whoever reads it logs where it came from


@pytest.mark.anyio
async def test_it_is_given_up_with_its_last_listener():
    drawing = Drawing()
    drawing.go()
    recording = await Recording.begin(order(), aiter(drawing))
    recording.join()
    recording.join()
    recording.leave()
    await settle()
    assert not drawing.closed
    recording.leave()
    await settle()
    assert drawing.closed
    assert recording.finished
    assert recording.cancelled
    with pytest.raises(ApiError) as caught:
        [event async for event in recording.read()]
    assert caught.value.code == "cancelled"


@pytest.mark.anyio
async def test_it_goes_on_without_listeners_if_it_is_kept():
    drawing = Drawing()
    drawing.go()
    recording = await Recording.begin(order(), aiter(drawing), kept=True)
    recording.join()
    recording.leave()
    await settle()
    assert not drawing.closed
    await recording.cancel()
    assert drawing.closed
    await recording.cancel()


@pytest.mark.anyio
async def test_who_repeats_a_request_listens_before_the_first_can_go():
    """The first goes after the second was handed the recording, and before it reads."""
    idempotency, drawing = Idempotency(Shelf(most_bytes=1 << 20)), Drawing(picture())
    drawing.go()
    asked = ("key", None, b"body", lambda: Recording.begin(order(), aiter(drawing)))
    first = await idempotency.once(*asked)
    second = await idempotency.once(*asked, repeated=True)
    assert second is first
    first.leave()
    await settle()
    drawing.go(2)
    assert [event async for event in second.read()] == drawing.events
    second.leave()


@pytest.mark.anyio
async def test_it_is_given_up_when_all_who_were_handed_it_have_gone():
    idempotency, drawing = Idempotency(Shelf(most_bytes=1 << 20)), Drawing(picture())
    asked = ("key", None, b"body", lambda: Recording.begin(order(), aiter(drawing)))
    both = [asyncio.create_task(idempotency.once(*asked, repeated=True)) for _ in range(2)]
    await settle()
    drawing.go()
    first, second = await asyncio.gather(*both)
    assert second is first
    first.leave()
    await settle()
    assert not drawing.closed
    second.leave()
    await settle()
    assert drawing.closed


@pytest.mark.anyio
async def test_whoever_goes_before_it_begins_ends_it():
    drawing = Drawing()
    beginning = asyncio.create_task(Recording.begin(order(), aiter(drawing), kept=True))
    await settle()
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert drawing.closed
    never = Drawing()
    at_once = asyncio.create_task(Recording.begin(order(), aiter(never)))
    at_once.cancel()
    with pytest.raises(asyncio.CancelledError):
        await at_once


# --- jobs ---


def jobs_of(**limits):
    return Jobs(Shelf(**{"most_bytes": 1 << 20, **limits}))


@pytest.mark.anyio
async def test_a_job_says_how_it_stands():
    drawing = Drawing(
        StepEvent(0, 1, 2), StepEvent(1, 1, 2), PreviewEvent(0, 0, b"x"), picture(1), StepEvent(0, 2, 2), picture(0)
    )
    drawing.go()
    jobs = jobs_of()
    job = await jobs.begin(order(n=2), aiter(drawing))
    told = []
    for _ in range(7):
        await settle()
        told.append((job.status, job.progress))
        drawing.go()
    await settle()
    assert told == [
        ("queued", 0),
        ("running", 25),
        ("running", 50),
        ("running", 50),
        ("running", 75),
        ("running", 100),
        ("running", 100),
    ]
    described = job.describe()
    assert (described["status"], described["progress"], "error" in described) == ("completed", 100, False)
    assert [len(image["b64_json"]) for image in described["result"]["data"]] == [136, 136]
    assert jobs.of(ANONYMOUS, job.id) is job


@pytest.mark.anyio
async def test_a_job_that_fails_says_why_and_no_more(caplog):
    jobs = jobs_of()
    for error, code in ((ApiError(504, "Too late.", code="deadline"), "deadline"), (KeyError("secret"), "internal")):
        drawing = Drawing(error)
        drawing.go(2)
        job = await jobs.begin(order(), aiter(drawing))
        await settle()
        described = job.describe()
        assert (described["status"], described["error"]["code"], "result" in described) == ("failed", code, False)
        assert "secret" not in json.dumps(described)
    (logged,) = caplog.records  # what nobody foresaw, though nobody reads the job
    assert logged.getMessage() == f"order {job.recording.order.id} failed"
    assert isinstance(logged.exc_info[1], KeyError)


@pytest.mark.anyio
async def test_jobs_are_their_keys_own():
    drawing = Drawing()
    drawing.go()
    jobs = jobs_of()
    job = await jobs.begin(order(), aiter(drawing))
    other, admin = replace(ANONYMOUS, id="other"), replace(ANONYMOUS, id="root", scopes=frozenset({"admin"}))
    for key, id in ((other, job.id), (ANONYMOUS, "imgjob_0")):
        with pytest.raises(ApiError) as caught:
            jobs.of(key, id)
        assert (caught.value.status, caught.value.code) == (404, "job_not_found")
    assert jobs.of(admin, job.id) is job
    await jobs.stop()
    assert drawing.closed
    assert job.status == "cancelled"


@pytest.mark.anyio
async def test_jobs_are_forgotten_when_they_are_done_and_old_or_many():
    now = [0.0]
    jobs = jobs_of(keep_s=60, most=2, most_bytes=10_000, clock=lambda: now[0])

    async def begin(*events):
        drawing = Drawing(*events)
        drawing.go(1 + len(events))
        return await jobs.begin(order(), aiter(drawing)), drawing

    (going, last), *done = [await begin(), *[await begin(picture()) for _ in range(3)]]
    for _, drawing in done:
        drawing.go()
    await settle()
    large, drawing = await begin(picture(size=20_000))
    drawing.go()
    await settle()
    assert [job.good for job in (going, *(job for job, _ in done), large)] == [True, False, False, False, False]
    now[0] = 61.0
    assert going.good
    last.go()
    await settle()
    assert not going.good


@pytest.mark.anyio
@pytest.mark.parametrize("ended", [picture(), ApiError(503, "Lost.", code="unavailable")], ids=["done", "failed"])
async def test_a_repetition_joins_a_job_under_way_and_none_that_has_ended(ended):
    jobs, idempotency = jobs_of(), Idempotency(Shelf(most_bytes=1 << 20))

    def begin():
        drawings.append(drawing := Drawing(ended))
        drawing.go()
        return jobs.begin(order(), aiter(drawing))

    drawings = []
    asked = ("key", None, b"body", begin)
    first = await idempotency.once(*asked)
    assert await idempotency.once(*asked, repeated=True) is first
    drawings[0].go(2)
    await settle()
    assert first.finished
    assert await idempotency.once(*asked, repeated=True) is not first


@pytest.mark.anyio
async def test_the_same_key_gets_another_job_after_one_that_failed_but_not_after_one_that_was_given_up():
    jobs, idempotency = jobs_of(), Idempotency(Shelf(most_bytes=1 << 20))
    failing, going = Drawing(ApiError(503, "Lost.", code="unavailable")), Drawing()
    failing.go(2)
    going.go()
    drawings = iter([failing, going])
    asked = ("key", "name", b"body", lambda: jobs.begin(order(), aiter(next(drawings))))
    first = await idempotency.once(*asked)
    await settle()
    assert first.status == "failed"
    second = await idempotency.once(*asked)
    assert second is not first
    await second.cancel()
    assert second.status == "cancelled"
    assert await idempotency.once(*asked) is second


# --- over HTTP ---


@pytest.fixture(scope="module")
def client(live):
    with live.http() as client:
        yield client


@pytest.fixture(scope="module")
def slow(tiny_folder):
    """A server that lets requests take long."""
    settings = settings_for(tiny_folder, bounds={**SLOW_BOUNDS, "max_streams": 3})
    with live_server(settings, send_buffer=4096) as live, live.http() as client:
        yield live, client


def done(client, id):
    def look():
        job = client.get(f"{PATH}/{id}").json()
        return job if job["status"] not in {"queued", "running"} else None

    return wait_until(look, "the job")


def watch(client, id, **headers):
    with client.stream("GET", f"{PATH}/{id}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
        return [event for event in events_of(answer.iter_lines()) if "data" in event]


def test_a_job_gives_what_a_request_gives(client):
    body = {"prompt": "x", "n": 2, "lens": {"seed": 3, "tier": "exact"}}
    begun = client.post(PATH, json=body)
    assert begun.status_code == 202
    assert begun.headers["x-lens-rewrite"] == "off"
    job = begun.json()
    assert begun.headers["location"] == job["urls"]["job"] == f"{PATH}/{job['id']}"
    assert (job["object"], job["model"]) == ("image.job", "tiny")
    job = done(client, job["id"])
    assert (job["status"], job["progress"]) == ("completed", 100)
    assert job["expires_at"] > job["created_at"]
    answer = client.post("/v1/images/generations", json=body).json()
    assert [one["b64_json"] for one in job["result"]["data"]] == [one["b64_json"] for one in answer["data"]]
    assert job["result"].keys() == answer.keys()


def test_events_are_heard_again_and_from_the_middle(client):
    body = {"prompt": "x", "stream": True, "partial_images": 2, "quality": "high", "lens": {"steps": 8}}
    id = client.post(PATH, json=body).json()["id"]
    first = watch(client, id)
    assert [event["id"] for event in first] == [str(number) for number in range(len(first))]
    assert first[-1]["event"] == "image_generation.completed"
    assert pixels(first[-1]["data"]["b64_json"]).shape == (SIDE, SIDE, 3)
    again = watch(client, id)
    assert [event["data"]["b64_json"] for event in again] == [event["data"]["b64_json"] for event in first]
    for place in range(len(first)):
        rest = watch(client, id, **{"last-event-id": str(place)})
        assert [event["id"] for event in rest] == [event["id"] for event in first[place + 1 :]]
    assert watch(client, id, **{"last-event-id": "999"}) == []


@pytest.mark.parametrize("last", ["x", "-1", "99999999999", "1.5"])
def test_a_bad_last_event_id_is_told(client, last):
    id = client.post(PATH, json={"prompt": "x"}).json()["id"]
    error_of(client.get(f"{PATH}/{id}/events", headers={"last-event-id": last}), 400)


def test_the_log_tells_what_was_begun_and_watched(client, caplog):
    with caplog.at_level(logging.INFO, "lens_serve.requests"):
        begun = client.post(PATH, json={"prompt": "x", "lens": {"steps": 3}}, headers={"x-request-id": "begun"})
        watch(client, begun.json()["id"], **{"x-request-id": "watched"})

        def lines():
            """Of these requests; one before may be told of late."""
            found = {record.facts["request"]: record.facts for record in caplog.records}
            return [found[name] for name in ("begun", "watched")] if {"begun", "watched"} <= set(found) else None

        told = wait_until(lines, "both lines")
    assert [facts["route"] for facts in told] == [PATH, PATH + "/{id}/events"]
    for facts in told:
        assert facts.items() >= {"model": "tiny", "size": f"{SIDE}x{SIDE}", "steps": 3, "n": 1}.items()
        assert "prompt" not in facts


def test_what_is_refused_is_no_job(client):
    assert error_of(client.post(PATH, json={"prompt": "x", "size": "1x1"}), 400)["param"] == "size"
    assert error_of(client.post(PATH, json={"prompt": "x", "model": "other"}), 404)["code"] == "model_not_found"
    assert error_of(client.get(f"{PATH}/imgjob_0"), 404)["code"] == "job_not_found"
    assert error_of(client.delete(f"{PATH}/imgjob_0"), 404)["code"] == "job_not_found"
    assert error_of(client.get(f"{PATH}/imgjob_0/events"), 404)["code"] == "job_not_found"
    error_of(client.post(PATH, json={"prompt": "x"}, headers={"idempotency-key": "k" * 256}), 400)


def test_a_client_who_goes_changes_nothing(slow):
    live, client = slow
    body = {"prompt": "x", "lens": {"steps": 300}}
    id = client.post(PATH, json=body).json()["id"]
    with client.stream("GET", f"{PATH}/{id}/events") as answer:
        next(answer.iter_lines())
    assert done(client, id)["status"] == "completed"
    wait_until(lambda: live.jobs == 0, "the engine")


def test_a_job_is_given_up(slow):
    live, client = slow
    id = client.post(PATH, json={"prompt": "x", "n": 2, **ENDLESS}).json()["id"]
    wait_until(lambda: client.get(f"{PATH}/{id}").json()["status"] == "running", "the first step")
    job = client.delete(f"{PATH}/{id}").json()
    assert (job["status"], job["error"]["code"], "result" in job) == ("cancelled", "cancelled", False)
    wait_until(lambda: live.jobs == 0, "the engine")
    (event,) = watch(client, id)
    assert (event["event"], event["data"]["error"]["code"]) == ("error", "cancelled")
    assert client.delete(f"{PATH}/{id}").json() == client.get(f"{PATH}/{id}").json()


def test_giving_up_a_finished_job_leaves_it(client):
    id = client.post(PATH, json={"prompt": "x"}).json()["id"]
    finished = done(client, id)
    assert client.delete(f"{PATH}/{id}").json()["status"] == "completed"
    assert client.get(f"{PATH}/{id}").json()["result"]["data"] == finished["result"]["data"]


def test_the_same_key_is_the_same_job(client):
    body = {"prompt": "x"}
    jobs = [client.post(PATH, json=body, headers={"idempotency-key": "one"}).json()["id"] for _ in range(3)]
    assert len(set(jobs)) == 1
    assert client.post(PATH, json=body, headers={"idempotency-key": "two"}).json()["id"] != jobs[0]
    assert client.post(PATH, json=body).json()["id"] != jobs[0]
    other = client.post(PATH, json={"prompt": "y"}, headers={"idempotency-key": "one"})
    assert error_of(other, 409)["code"] == "idempotency_conflict"
    assert other.headers["x-should-retry"] == "false"


def unread(live, request):
    """A connection on which something was asked for, and whose answer has begun to come but is not read on."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.settimeout(WAIT_S)
    connection.connect(("127.0.0.1", live.port))
    connection.sendall(request.encode())
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


@pytest.mark.parametrize("how", ["a job that is done", "a repeated request"])
def test_images_of_before_count_among_a_keys_streams(slow, how):
    """Or one key could have any number of large answers lie in this process's memory, for nothing."""
    live, _ = slow
    large = {"prompt": "x", "n": 4, "size": "192x192", "lens": {"steps": 1}}
    with live.http() as client, contextlib.ExitStack() as open_ones:
        if how == "a job that is done":
            id = client.post(PATH, json=large).json()["id"]
            assert done(client, id)["status"] == "completed"
            asked = f"GET {PATH}/{id} HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n\r\n"

            def again():
                return client.get(f"{PATH}/{id}")
        else:
            body = json.dumps(large)
            headers = {"idempotency-key": "large", "content-type": "application/json"}
            lines = [*(f"{name}: {value}" for name, value in headers.items()), f"content-length: {len(body)}"]
            head = "\r\n".join([f"Host: 127.0.0.1:{live.port}", *lines])
            asked = f"POST /v1/images/generations HTTP/1.1\r\n{head}\r\n\r\n{body}"

            def again():
                return client.post("/v1/images/generations", content=body, headers=headers)

            assert again().status_code == 200
        wait_until(lambda: not any(live.server.streams.values()), "what was asked for before")
        for _ in range(3):
            open_ones.enter_context(unread(live, asked))
        error = error_of(again(), 429)
        assert error["code"] == "concurrency"
        assert client.post("/v1/images/generations", json={"prompt": "x"}).status_code == 200
        open_ones.close()
        wait_until(lambda: not any(live.server.streams.values()), "the readers' end")
        assert again().status_code == 200


def test_an_answer_that_nobody_reads_is_dropped(slow, monkeypatch):
    live, _ = slow
    with live.http() as client:
        id = client.post(PATH, json={"prompt": "x", "n": 4, "size": "192x192", "lens": {"steps": 1}}).json()["id"]
        assert done(client, id)["status"] == "completed"
        monkeypatch.setattr(sending, "WRITE_S", 0.3)
        asked = f"GET {PATH}/{id} HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n\r\n"
        with unread(live, asked):
            wait_until(lambda: not any(live.server.streams.values()), "its end")


def test_an_answer_that_waits_for_its_reader_holds_the_images_once(slow):
    live, _ = slow
    body = json.dumps({"prompt": "x", "n": 4, "size": "192x192", "lens": {"steps": 1}})
    lines = f"Host: 127.0.0.1:{live.port}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    wait_until(lambda: live.rests, "what was asked for before")
    with unread(live, f"POST /v1/images/generations HTTP/1.1\r\n{lines}\r\n\r\n{body}") as connection:

        def held():
            gc.collect()
            return [one for one in live.server.idempotency._flying.values() if isinstance(one, Recording)]  # no job

        wait_until(lambda: not live.ask(held), "the recording's end")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1 << 16)
        head, _, answer = answer.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split()[0])
        assert size > 4 << 16
        while len(answer) < size:
            answer += connection.recv(1 << 16)
    assert len(json.loads(answer)["data"]) == 4


def test_streams_of_jobs_count_among_a_keys_streams(slow):
    live, client = slow
    id = client.post(PATH, json={"prompt": "x", **ENDLESS}).json()["id"]
    with contextlib.ExitStack() as open_ones:
        for _ in range(3):
            open_ones.enter_context(client.stream("GET", f"{PATH}/{id}/events"))
        error_of(client.get(f"{PATH}/{id}/events"), 429)
    client.delete(f"{PATH}/{id}")
    wait_until(lambda: not any(live.server.streams.values()), "the readers")
