"""The fake server's files and batches, as the SDK sees them, through a whole life and every way to end."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from decimal import Decimal

import openai
import pytest

from lens_caption.testing.openai_server import BatchSettings, FakeServer, Faults, number_in_text, numbered_jpeg

DAY_S = 24 * 3600
CHAT = "/v1/chat/completions"
# A small batch on a clock that only the test turns: 10 s of validation, 100 s of work, 5 s of finalizing.
SLOWLY = BatchSettings(validate_s=10, process_s=100, finalize_s=5, cancel_s=3)


def body(number, model="test-model", endpoint=CHAT):
    url = f"data:image/jpeg;base64,{base64.b64encode(numbered_jpeg(number, 64, 64)).decode()}"
    if endpoint == CHAT:
        content = [{"type": "text", "text": "Describe."}, {"type": "image_url", "image_url": {"url": url}}]
        return {"model": model, "messages": [{"role": "user", "content": content}]}
    content = [
        {"type": "input_text", "text": "Describe."},
        {"type": "input_image", "image_url": url, "detail": "auto"},
    ]
    return {"model": model, "input": [{"role": "user", "content": content}]}


def line(number, **changes):
    value = {"custom_id": f"image-{number}", "method": "POST", "url": CHAT, "body": body(number)}
    return json.dumps({**value, **changes})


class Client:
    """What a client of the batch API does, by the SDK."""

    def __init__(self, server):
        self.sdk = openai.OpenAI(api_key="x", base_url=server.url, max_retries=0)

    def upload(self, lines, **options):
        data = io.BytesIO("\n".join(lines).encode())
        return self.sdk.files.create(file=("in.jsonl", data), purpose="batch", **options)

    def start(self, lines, **options):
        options = {"endpoint": CHAT, "completion_window": "24h", **options}
        return self.sdk.batches.create(input_file_id=self.upload(lines).id, **options)

    def get(self, batch):
        return self.sdk.batches.retrieve(batch.id)

    def results(self, file_id):
        return [json.loads(row) for row in self.sdk.files.content(file_id).text.splitlines()]


@pytest.fixture
def serve():
    """Start a server with a manual clock, and a client of it."""
    opened = []

    def start(**options):
        server = FakeServer(**{"clock": "manual", "batches": SLOWLY, **options}).__enter__()
        client = Client(server)
        opened.extend([client.sdk.close, lambda: server.__exit__(None, None, None)])
        return server, client

    yield start
    for close in opened:
        close()


@pytest.mark.parametrize("endpoint", [CHAT, "/v1/responses"])
def test_a_whole_life(serve, endpoint):
    server, client = serve()
    lines = [line(number, url=endpoint, body=body(number, endpoint=endpoint)) for number in range(20)]
    batch = client.start(lines, endpoint=endpoint, metadata={"intent": "a1"})
    assert (batch.status, batch.expires_at - batch.created_at) == ("validating", DAY_S)
    server.clock.advance(9)
    assert client.get(batch).status == "validating"
    assert len(server.ledger) == 0
    server.clock.advance(1.5)
    batch = client.get(batch)
    assert (batch.status, batch.request_counts.total, batch.request_counts.completed) == ("in_progress", 20, 0)
    assert batch.model == "test-model"
    server.clock.advance(50)
    assert client.get(batch).request_counts.completed == len(server.ledger) == 10
    server.clock.advance(49.9)
    batch = client.get(batch)
    assert (batch.status, batch.output_file_id) == ("finalizing", None)
    server.clock.advance(5)
    batch = client.get(batch)
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (20, 0)
    assert batch.error_file_id is None
    assert batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    results = client.results(batch.output_file_id)
    assert [row["custom_id"] for row in results] != [f"image-{number}" for number in range(20)]
    for row in results:
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        answer = row["response"]["body"]
        text = (
            answer["choices"][0]["message"]["content"]
            if endpoint == CHAT
            else answer["output"][0]["content"][0]["text"]
        )
        assert f"image-{number_in_text(text)}" == row["custom_id"]
    assert server.ledger.custom_ids() == {f"image-{number}": 1 for number in range(20)}
    assert {entry.tier for entry in server.ledger} == {"batch"}
    assert {entry.batch for entry in server.ledger} == {batch.id}
    assert batch.usage.input_tokens == server.ledger.input_tokens()
    assert batch.usage.output_tokens == server.ledger.output_tokens()
    assert client.sdk.files.retrieve(batch.output_file_id).purpose == "batch_output"


def test_one_long_turn_of_the_clock_is_as_good_as_many_short_ones(serve):
    ends = []
    for turns in (1, 40):
        server, client = serve()
        batch = client.start([line(number) for number in range(7)])
        for _ in range(turns):
            server.clock.advance(200 / turns)
        batch = client.get(batch)
        ends.append((batch.status, batch.completed_at - batch.created_at, len(server.ledger)))
    assert ends[0] == ends[1] == ("completed", 115, 7)


def test_a_batch_costs_half(serve):
    server, client = serve(prices={"test-model": ("2", "8")})
    client.start([line(1)])
    server.clock.advance(200)
    (entry,) = server.ledger
    assert entry.cost == Decimal(entry.input_tokens * 2 + entry.output_tokens * 8) / 2_000_000


@pytest.mark.parametrize(
    ("lines", "options", "errors"),
    [
        ([line(1), "{", line(2)], {}, [("invalid_json_line", 2)]),
        ([line(1), line(2), line(3, custom_id="image-1")], {}, [("duplicate_custom_id", 3)]),
        ([line(1), line(2, url="/v1/responses")], {}, [("url_mismatch", 2)]),
        ([line(1), line(2, body=body(2, "another"))], {}, [("model_mismatch", 2)]),
        ([line(1, method="GET")], {}, [("invalid_request", 1)]),
        ([line(1, colour="red")], {}, [("invalid_request", 1)]),
        (["", ""], {}, [("empty_file", None)]),
        ([line(n) for n in range(4)], {"max_requests": 3}, [("too_many_tasks", None)]),
        (["{", "{"], {}, [("invalid_json_line", 1), ("invalid_json_line", 2)]),
    ],
)
def test_what_fails_validation_says_where(serve, lines, options, errors):
    server, client = serve(batches=BatchSettings(**options))
    batch = client.start(lines)
    assert batch.status == "validating"
    server.clock.advance(200)
    batch = client.get(batch)
    assert batch.status == "failed"
    assert batch.failed_at
    assert [(error.code, error.line) for error in batch.errors.data] == errors
    assert all(error.message for error in batch.errors.data)
    assert len(server.ledger) == 0
    assert client.get(batch).output_file_id is None


def test_files_that_are_too_large_are_refused(serve):
    _, client = serve(batches=BatchSettings(max_bytes=10_000))
    with pytest.raises(openai.BadRequestError, match="at most 10000"):
        client.upload([line(number) for number in range(10)])
    assert client.upload([line(1)]).bytes == len(line(1))


@pytest.mark.parametrize(
    "options",
    [
        {"completion_window": "1h"},
        {"endpoint": "/v1/poems"},
        {"metadata": {f"key-{number}": "" for number in range(17)}},
        {"metadata": {"key": "v" * 513}},
    ],
)
def test_wrong_batches_are_refused_at_once(serve, options):
    _, client = serve()
    with pytest.raises(openai.BadRequestError):
        client.start([line(1)], **options)
    with pytest.raises(openai.BadRequestError, match="No such File"):
        client.sdk.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")
    image = client.sdk.files.create(file=("a.jpg", io.BytesIO(b"x")), purpose="vision")
    with pytest.raises(openai.BadRequestError, match="not 'batch'"):
        client.sdk.batches.create(input_file_id=image.id, endpoint=CHAT, completion_window="24h")


def test_too_many_enqueued_tokens_fail_after_the_fact(serve):
    server, client = serve(batches=BatchSettings(validate_s=10, process_s=100, enqueued_tokens=40))
    first, second = client.start([line(1), line(2)]), client.start([line(3), line(4)])
    assert second.status == "validating"  # it is created all the same
    server.clock.advance(20)
    second = client.get(second)
    assert (client.get(first).status, second.status) == ("in_progress", "failed")
    assert second.errors.data[0].code == "token_limit_exceeded"
    assert second.errors.data[0].line is None
    server.clock.advance(200)
    third = client.start([line(3), line(4)])
    server.clock.advance(300)
    assert client.get(third).status == "completed"
    assert set(server.ledger.images().values()) == {1}


def test_bad_lines_are_errors_of_their_own(serve):
    bad = body(2)
    bad["messages"][0]["content"][1]["image_url"]["url"] = "data:image/jpeg;base64,AAAA"
    server, client = serve(faults=Faults(always={5: "500", 6: "drop", 7: "refusal"}))
    rows = [line(1), line(2, body=bad), line(3, body={**body(3), "colour": 1}), line(5), line(6), line(7)]
    batch = client.start(rows)
    server.clock.advance(200)
    batch = client.get(batch)
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 4)
    statuses = {row["custom_id"]: row["response"]["status_code"] for row in client.results(batch.error_file_id)}
    assert statuses == {"image-2": 400, "image-3": 400, "image-5": 500, "image-6": 500}
    answers = {row["custom_id"]: row["response"]["body"] for row in client.results(batch.output_file_id)}
    assert answers.keys() == {"image-1", "image-7"}
    assert answers["image-7"]["choices"][0]["message"]["refusal"]
    assert len(server.ledger) == 2


def test_an_expired_batch_gives_and_bills_what_it_finished(serve):
    server, client = serve(faults=Faults(batch_script=["expired"]))
    batch = client.start([line(number) for number in range(9)])
    server.clock.advance(1000)
    assert client.get(batch).status == "in_progress"
    billed = len(server.ledger)
    assert 0 < billed < 9
    server.clock.advance(DAY_S)
    batch = client.get(batch)
    assert (batch.status, batch.expired_at) == ("expired", batch.expires_at)
    done, lost = client.results(batch.output_file_id), client.results(batch.error_file_id)
    assert len(done) == len(server.ledger) == billed
    assert {row["error"]["code"] for row in lost} == {"batch_expired"}
    assert all(row["response"] is None for row in lost)
    assert {row["custom_id"] for row in done} | {row["custom_id"] for row in lost} == {f"image-{n}" for n in range(9)}


def test_a_batch_that_takes_longer_than_a_day_expires(serve):
    server, client = serve(batches=BatchSettings(process_s=2 * DAY_S))
    batch = client.start([line(number) for number in range(10)])
    server.clock.advance(3 * DAY_S)
    batch = client.get(batch)
    assert batch.status == "expired"
    assert batch.request_counts.completed in {4, 5}


def test_cancelling_keeps_what_is_done(serve):
    server, client = serve()
    batch = client.start([line(number) for number in range(10)])
    server.clock.advance(60)
    assert client.sdk.batches.cancel(batch.id).status == "cancelling"
    assert client.get(batch).status == "cancelling"
    server.clock.advance(3)
    batch = client.get(batch)
    assert (batch.status, batch.request_counts.completed) == ("cancelled", 5)
    assert len(client.results(batch.output_file_id)) == len(server.ledger) == 5
    assert {row["error"]["code"] for row in client.results(batch.error_file_id)} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError, match="Cannot cancel"):
        client.sdk.batches.cancel(batch.id)
    early = client.start([line(1)])
    client.sdk.batches.cancel(early.id)
    server.clock.advance(10)
    early = client.get(early)
    assert (early.status, early.output_file_id, early.request_counts.total) == ("cancelled", None, 0)


def test_partly_and_wholly_failed(serve):
    server, client = serve(faults=Faults(batch_script=["partly-failed", "all-failed", "invalid", "token-limit"]))
    batches = [client.start([line(number) for number in range(30)]) for _ in range(4)]
    server.clock.advance(200)
    partly, wholly, invalid, over = map(client.get, batches)
    assert partly.status == wholly.status == "completed"
    assert 0 < partly.request_counts.failed < 30
    assert partly.request_counts.failed == len(client.results(partly.error_file_id))
    assert wholly.output_file_id is None
    assert len(client.results(wholly.error_file_id)) == 30
    assert invalid.errors.data[0].code == "invalid_json_line"
    assert over.errors.data[0].code == "token_limit_exceeded"
    assert len(server.ledger) == partly.request_counts.completed


def test_an_upload_that_comes_in_pieces(serve):
    server, _ = serve()
    value = "\r\n".join(
        [
            "--line",
            'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch',
            "--line",
            'Content-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n' + line(1) * 20,
            "--line--\r\n",
        ]
    ).encode()
    at = value.index(b"batch")
    address = urllib.parse.urlsplit(server.url)
    head = (
        f"POST {address.path}/files HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer x\r\n"
        f"Content-Type: multipart/form-data; boundary=line\r\nContent-Length: {len(value)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        # The first two reads of "batch" find two bytes each, fewer than a boundary has.
        for piece in (head + value[: at + 2], value[at + 2 : at + 4], value[at + 4 :]):
            connection.sendall(piece)
            time.sleep(0.1)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 200"), answer.decode()
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["bytes"] == len(line(1)) * 20


def test_file_ids_may_be_empty_texts(serve):
    server, client = serve(faults=Faults(batch_script=["empty-file-ids"]))
    batch = client.start([line(1)])
    assert batch.error_file_id is None
    server.clock.advance(200)
    batch = client.get(batch)
    assert batch.error_file_id == ""
    assert len(client.results(batch.output_file_id)) == 1


def test_results_do_not_last_for_ever(serve):
    server, client = serve(faults=Faults(batch_script=["ok", "output-expired"]))
    lasting = client.start([line(1)], output_expires_after={"anchor": "created_at", "seconds": 3600})
    gone = client.start([line(2)])
    server.clock.advance(200)
    with pytest.raises(openai.NotFoundError):
        client.results(client.get(gone).output_file_id)
    file_id = client.get(lasting).output_file_id
    assert len(client.results(file_id)) == 1
    server.clock.advance(3600)
    with pytest.raises(openai.NotFoundError):
        client.results(file_id)


def test_a_restarted_client_finds_its_batches(serve):
    server, client = serve()
    for number in range(25):
        client.start([line(number)], metadata={"intent": str(number)})
    server.clock.advance(200)
    again = Client(server)
    first = again.sdk.batches.list(limit=10)
    assert (len(first.data), first.has_more) == (10, True)
    assert [batch.metadata["intent"] for batch in again.sdk.batches.list(limit=10)] == [
        str(number) for number in reversed(range(25))
    ]
    with pytest.raises(openai.NotFoundError):
        again.sdk.batches.list(after="batch_x")
    with pytest.raises(openai.BadRequestError):
        again.sdk.batches.list(limit=101)
    with pytest.raises(openai.NotFoundError):
        again.sdk.batches.retrieve("batch_x")
    assert len(list(again.sdk.files.list(purpose="batch"))) == 25
    assert len(list(again.sdk.files.list(purpose="batch_output"))) == 25
    files = list(again.sdk.files.list(order="asc", limit=7))
    assert len({file.id for file in files}) == 50
    assert again.sdk.files.content(files[0].id).text == line(0)
    again.sdk.files.delete(files[0].id)
    with pytest.raises(openai.NotFoundError):
        again.sdk.files.retrieve(files[0].id)
    again.sdk.close()


def test_lost_answers_of_files_and_batches(serve):
    faults = Faults(control_script=["500", "drop", "html", "ok", "drop-after", "ok"])
    server, client = serve(faults=faults)
    with pytest.raises(openai.InternalServerError):
        client.upload([line(1)])
    with pytest.raises(openai.APIConnectionError):
        client.upload([line(1)])
    assert not hasattr(client.upload([line(1)]), "id")  # a page of HTML comes back as a text
    file = client.upload([line(1)])
    with pytest.raises(openai.APIConnectionError):
        client.sdk.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"intent": "lost"}
        )
    (found,) = client.sdk.batches.list()  # it was created all the same
    assert found.metadata == {"intent": "lost"}
    assert [batch["id"] for batch in server.batches.all()] == [found.id]


def test_batches_go_on_by_themselves_when_the_clock_runs():
    with FakeServer(clock=3600.0, batches=BatchSettings(validate_s=60, process_s=600, finalize_s=60)) as server:
        client = Client(server)
        batch = client.start([line(number) for number in range(12)])
        deadline = time.monotonic() + 120
        while (batch := client.get(batch)).status != "completed" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert batch.status == "completed"
        assert batch.completed_at - batch.created_at >= 719
        assert len(server.ledger) == 12
        client.sdk.close()


def test_the_clock_can_be_turned_over_http(serve):
    server, client = serve()
    batch = client.start([line(1)])

    def turn(seconds):
        data = json.dumps({"advance": seconds}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{server.control_url}/_clock", data)) as answer:
            return json.loads(answer.read())

    before = server.clock.now()
    assert turn(200)["now"] == before + 200
    assert client.get(batch).status == "completed"
    for wrong in (-1, "soon"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            turn(wrong)
        caught.value.close()
        assert caught.value.code == 400
    with urllib.request.urlopen(f"{server.control_url}/_state") as answer:
        assert [one["id"] for one in json.loads(answer.read())["batches"]] == [batch.id]


def test_two_servers_that_see_the_same_do_the_same(serve):
    orders = []
    for _ in range(2):
        server, client = serve(faults=Faults(rate=0.3, seed=9, kinds=["content"]))
        batch = client.start([line(number) for number in range(20)])
        server.clock.advance(200)
        orders.append(
            [
                (row["custom_id"], row["response"]["status_code"])
                for row in client.results(client.get(batch).output_file_id)
            ]
        )
    assert orders[0] == orders[1]
