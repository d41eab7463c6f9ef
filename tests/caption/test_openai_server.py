"""The fake server: what it reads in pixels, what it refuses, what it answers, and what it bills."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import urllib.error
import urllib.request
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lens_caption.testing.openai_server import (
    FakeServer,
    Ledger,
    LedgerEntry,
    caption_of,
    number_in_text,
    number_of,
    numbered_image,
    numbered_jpeg,
)
from lens_caption.testing.openai_server.schemas import strict_schema_fault
from lens_caption.testing.openai_server.structured import fill
from lens_caption.testing.openai_server.tokens import MODELS, ModelFacts, facts_of, image_tokens, text_tokens
from lens_core.images import decode, to_jpeg

CAPTION_SCHEMA = {
    "type": "object",
    "properties": {"brief": {"type": "string"}, "dense": {"type": "string"}, "people": {"type": ["integer", "null"]}},
    "required": ["brief", "dense", "people"],
    "additionalProperties": False,
}


def data_url(data, kind="jpeg"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def chat(number=1, model="test-model", text="Describe.", size=(64, 64), detail=None, **options):
    image = {"url": data_url(numbered_jpeg(number, *size)), **({"detail": detail} if detail else {})}
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": image}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **options}


def responses(number=1, model="test-model", **options):
    content = [
        {"type": "input_text", "text": "Describe."},
        {"type": "input_image", "image_url": data_url(numbered_jpeg(number, 64, 64)), "detail": "auto"},
    ]
    return {"model": model, "input": [{"role": "user", "content": content}], **options}


def send(server, path, value, **headers):
    """Status, headers and body of a POST; the body is JSON where it can be."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    url = server.url.replace("/v1", path) if path.startswith("/openai/") else server.url + path
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.loads(error.read())


def get(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.loads(answer.read())


def text_of(body):
    if "choices" in body:
        return body["choices"][0]["message"]["content"]
    return "".join(part["text"] for item in body["output"] if item["type"] == "message" for part in item["content"])


# --- pixels ---


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(0, 2**40 - 1),
    width=st.integers(64, 300),
    height=st.integers(64, 300),
    max_side=st.integers(64, 128),
    quality=st.integers(50, 95),
)
def test_numbers_survive_scaling_and_jpeg(number, width, height, max_side, quality):
    pixels = decode(to_jpeg(numbered_image(number, width, height), max_side=300, quality=quality))
    assert number_of(pixels) == number
    if max(width, height) < 2 * min(width, height):
        assert number_of(decode(to_jpeg(pixels, max_side=max_side, quality=quality))) == number
    assert number_in_text(caption_of(pixels)) == number


def test_no_number_where_there_is_none():
    rng = np.random.default_rng(0)
    for _ in range(200):
        noise = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(9, 0).repeat(11, 1)
        assert number_of(noise) is None
        assert number_in_text(caption_of(noise)) is None
    assert number_of(np.zeros((3, 3, 3), np.uint8)) is None
    assert number_of(np.full((64, 64, 3), 77, np.uint8)) is None
    # Half of another image is no longer a number.
    mixed = numbered_image(1)
    mixed[256:] = numbered_image(2)[256:]
    assert number_of(mixed) is None


def test_a_grid_is_what_it_says():
    with pytest.raises(ValueError, match="from 0 to"):
        numbered_image(2**40)
    with pytest.raises(ValueError, match="at least 32 pixels"):
        numbered_image(1, 31, 64)
    assert numbered_image(7, 40, 64).shape == (64, 40, 3)
    assert numbered_jpeg(7) == numbered_jpeg(7)


def test_images_of_neighbouring_numbers_look_different():
    def dark(number):
        return numbered_image(number, 64, 64).mean(axis=2)[4::8, 4::8] > 128

    distances = [int((dark(number) != dark(number + 1)).sum()) for number in range(300)]
    assert min(distances) >= 12
    assert 28 < sum(distances) / len(distances) < 36


def test_captions_have_about_the_length_asked_for_and_pass_the_gates():
    from lens_caption.quality.config import GatesConfig
    from lens_caption.quality.gates import failures

    counts = []
    for number in range(40):
        text = caption_of(numbered_image(number, 96, 64), words=109)
        assert text == caption_of(numbered_image(number, 96, 64), words=109)
        assert failures(text, GatesConfig()) == []
        counts.append(len(text.split()))
    assert 95 < sum(counts) / 40 < 120
    assert max(counts) - min(counts) > 20
    photo = Image.linear_gradient("L").convert("RGB")
    assert failures(caption_of(np.asarray(photo)), GatesConfig()) == []


# --- tokens and money ---


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("gpt-4.1", (512, 512), 255),
        ("gpt-4.1", (1024, 1024), 765),
        ("gpt-4.1", (768, 1024), 765),
        ("gpt-4.1", (768, 1025), 1105),
        ("gpt-4.1", (2048, 1536), 765),
        ("gpt-4.1", (1800, 2400), 765),
        ("gpt-4.1", (2048, 4096), 1105),
        ("gpt-4.1-2025-04-14", (512, 512), 255),
        ("gpt-4.1-mini", (512, 512), 415),
        ("gpt-4.1-mini", (1024, 1024), 1659),
        ("gpt-4.1-nano", (512, 512), 630),
        ("gpt-4.1-nano", (1024, 1024), 2520),
        ("gpt-5.1", (512, 512), 210),
        ("gpt-5.1", (1024, 1024), 630),
        ("gpt-5.1", (768, 1025), 910),
        ("gpt-6-luna", (512, 512), 308),
        ("gpt-6-luna", (1024, 1024), 1229),
        ("gpt-6-luna", (768, 1024), 922),
        ("gpt-6-luna", (768, 1025), 951),
        ("gpt-6.1-sol", (2048, 1536), 1844),
        ("anything-else", (64, 33), 4),
    ],
)
def test_image_tokens_are_the_published_ones(model, size, tokens):
    assert image_tokens(facts_of(model, {}), *size) == tokens


def test_image_tokens_by_detail():
    assert image_tokens(MODELS["gpt-4.1"], 4000, 3000, "low") == 85
    assert image_tokens(MODELS["gpt-6-luna"], 3200, 3200, "original") == 12_000
    assert image_tokens(MODELS["gpt-6-luna"], 9000, 9000, "original") == 12_000
    assert image_tokens(ModelFacts(patches=Fraction(3, 2)), 32, 32) == 2


def test_the_profiles_and_the_server_agree():
    """Two copies of the rules, written apart."""
    from lens_caption.profiles import load_profile

    for model in MODELS:
        profile = load_profile(model, base_url=None, folder=None)
        for size in ((512, 512), (1024, 1024), (768, 1025), (640, 427), (3000, 2000), (96, 2500), (1, 1)):
            assert profile.image_tokens(*size, "high") == image_tokens(MODELS[model], *size), (model, size)
        price = profile.prices["standard"]
        assert MODELS[model].price == (price.input_per_million, price.output_per_million), model


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("a" * 9, 2), ("a" * 10, 3), ("猫" * 3, 2)])
def test_text_tokens(text, tokens):
    assert text_tokens(text) == tokens


def test_the_bill_is_tokens_times_price(tmp_path):
    with FakeServer(prices={"mine": ("2", "8")}, like={"other": "gpt-6-luna"}) as server:
        _, _, first = send(server, "/chat/completions", chat(1, "mine", size=(64, 96)), **{"X-Client-Request-Id": "a"})
        send(server, "/chat/completions", chat(2, "mine", service_tier="flex"))
        send(server, "/responses", responses(3, "other", reasoning={"effort": "none"}))
        one, two, three = server.ledger
        words = text_tokens(text_of(first))
        # 9 bytes of text are 2 tokens, a message 3, a request 3, an image 2 × 3 patches.
        assert (one.input_tokens, one.output_tokens) == (2 + 3 + 3 + 6, words)
        assert first["usage"]["prompt_tokens"] == one.input_tokens
        assert first["usage"]["total_tokens"] == one.input_tokens + words
        assert one.cost == (one.input_tokens * Decimal(2) + words * Decimal(8)) / 1_000_000
        assert two.cost == (two.input_tokens * 2 + two.output_tokens * Decimal(8)) / 2_000_000
        assert three.cost == (three.input_tokens * Decimal("0.1") + three.output_tokens * Decimal("0.5")) / 1_000_000
        assert [entry.tier for entry in server.ledger] == ["default", "flex", "default"]
        assert server.ledger.total_cost() == one.cost + two.cost + three.cost == server.ledger.spent
        assert one.image == hashlib.sha256(numbered_jpeg(1, 64, 96)).hexdigest()
        assert (one.number, one.custom_id, one.outcome) == (1, "a", "ok")
        assert one.response_id == first["id"]
        send(server, "/chat/completions", chat(4, "priceless"))
        with pytest.raises(ValueError, match="no price for priceless"):
            server.ledger.total_cost()


def test_the_ledger_can_be_asked_over_http():
    with FakeServer(prices={"test-model": ("1", "1")}) as server:
        for number in (1, 2, 1):
            send(server, "/chat/completions", chat(number), **{"X-Client-Request-Id": f"id-{number}"})
        totals = get(f"{server.control_url}/_ledger")
        assert totals["requests"] == totals["billed"] == 3
        assert (totals["images"], totals["billed_again"]) == (2, 1)
        assert Decimal(totals["cost"]) == server.ledger.total_cost()
        assert totals["outcomes"] == {"ok": 3}
        assert "entries" not in totals
        (entry,) = get(f"{server.control_url}/_ledger?custom_id=id-2")["entries"]
        assert LedgerEntry.from_json(entry) == server.ledger[1]
        image = server.ledger[0].image
        assert len(get(f"{server.control_url}/_ledger?image={image}")["entries"]) == 2
        assert get(f"{server.control_url}/_ledger/images") == dict(server.ledger.images())
        assert server.ledger.custom_ids() == {"id-1": 2, "id-2": 1}
        assert server.ledger.billed_again() == 1
        assert get(f"{server.control_url}/_state")["in_flight"] == 0


def test_the_ledger_outlives_the_server(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with FakeServer(ledger_path=path, like={"test-model": "gpt-4.1"}) as server:
        send(server, "/chat/completions", chat(1))
        before = list(server.ledger)
    with path.open("ab") as stream:
        stream.write(b'{"image": "cut o')
    with FakeServer(ledger_path=path) as server:
        assert list(server.ledger) == before
        assert server.ledger.spent == before[0].cost
        send(server, "/chat/completions", chat(2))
    ledger = Ledger(path)
    assert [entry.number for entry in ledger] == [1, 2]
    ledger.close()


# --- requests ---


def test_both_apis_answer_about_the_image_and_the_sdk_understands():
    with FakeServer() as server, openai.OpenAI(api_key="x", base_url=server.url, max_retries=0) as client:
        answer = client.chat.completions.create(**chat(5))
        assert number_in_text(answer.choices[0].message.content) == 5
        assert answer.usage.prompt_tokens == server.ledger[0].input_tokens
        answer = client.responses.create(**responses(6))
        assert number_in_text(answer.output_text) == 6
        assert answer.usage.input_tokens == server.ledger[1].input_tokens
        models = {model.id: model for model in client.models.list()}
        assert models["gpt-4.1"].shutdown_date == "2027-01-14"
        assert client.models.retrieve("gpt-6-luna").id == "gpt-6-luna"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("no-such-model")


def test_several_images_in_one_request():
    body = chat(1)
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": data_url(numbered_jpeg(2))}})
    with FakeServer() as server:
        _, _, answer = send(server, "/chat/completions", body)
        assert [number_in_text(line) for line in text_of(answer).splitlines()] == [1, 2]
        assert server.ledger[0].input_tokens > 256


def broken(change):
    body = chat()
    change(body)
    return body


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"{", "invalid_json", "could not parse"),
        ({}, "invalid_value", "model"),
        ([], "invalid_value", "dictionary"),
        (chat(colour="red"), "unknown_parameter", "colour"),
        (chat(max_tokens="700"), "invalid_value", "max_tokens"),
        (chat(max_tokens=0), "invalid_value", "max_tokens"),
        (chat(temperature=2.1), "invalid_value", "temperature"),
        (chat(stream=True), "invalid_value", "stream"),
        (chat(detail="huge"), "invalid_value", "detail"),
        (chat(service_tier="cheap"), "invalid_value", "service_tier"),
        (chat(metadata={"a" * 65: "b"}), "invalid_value", "metadata"),
        (chat(text=" "), "invalid_request", "wants a text"),
        (broken(lambda body: body["messages"][0]["content"].pop()), "invalid_request", "wants an image"),
        (broken(lambda body: body["messages"][0].update(role="robot")), "invalid_value", "messages.0"),
        (
            broken(lambda body: body["messages"][0]["content"][1].update(image_url="")),
            "invalid_value",
            "image_url",
        ),
        (broken(lambda body: body["messages"][0]["content"][1].update(type="input_image")), "invalid_value", "content"),
        (chat(model="gpt-6-luna", max_tokens=9), "unsupported_parameter", "Use 'max_completion_tokens'"),
        (chat(model="gpt-6-luna", temperature=0.2), "unsupported_value", "temperature"),
        (chat(model="gpt-4.1", reasoning_effort="low"), "unsupported_parameter", "reasoning_effort"),
        (chat(model="gpt-4.1", detail="original"), "invalid_value", "original"),
    ],
)
def test_wrong_requests_are_refused(body, code, words):
    with FakeServer() as server:
        status, _, answer = send(server, "/chat/completions", body)
        assert (status, answer["error"]["code"]) == (400, code), answer
        assert words in answer["error"]["message"]
        assert len(server.ledger) == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.com/cat.jpg", "only base64 data URLs"),
        ("data:image/jpeg;base64,@@@@", "not base64"),
        ("data:image/jpeg;base64,", "it is empty"),
        ("data:image/bmp;base64,AAAA", "only base64 data URLs"),
        (data_url(numbered_jpeg(1, 64, 64), "png"), "its type says image/png, and it is jpeg"),
        (data_url(numbered_jpeg(1)[: len(numbered_jpeg(1)) // 2]), "truncated"),
    ],
)
def test_images_that_cannot_be_used_are_refused(url, words):
    body = chat()
    body["messages"][0]["content"][1]["image_url"]["url"] = url
    with FakeServer() as server:
        status, _, answer = send(server, "/chat/completions", body)
        assert (status, answer["error"]["code"]) == (400, "invalid_image")
        assert words in answer["error"]["message"]


def test_bodies_of_the_two_apis_differ():
    with FakeServer() as server:
        assert send(server, "/responses", chat())[0] == 400
        assert send(server, "/chat/completions", responses())[0] == 400
        without_detail = responses()
        del without_detail["input"][0]["content"][1]["detail"]
        assert "detail" in send(server, "/responses", without_detail)[2]["error"]["message"]
        assert send(server, "/nothing", {})[0] == 404


def test_keys_are_checked_in_the_ways_of_openai_and_azure():
    with FakeServer(api_key="right") as server:
        assert send(server, "/chat/completions", chat())[0] == 401
        assert send(server, "/chat/completions", chat(), Authorization="Bearer wrong")[0] == 401
        assert send(server, "/chat/completions", chat(), Authorization="Bearer right")[0] == 200
        assert send(server, "/chat/completions", chat(), **{"api-key": "right"})[0] == 200
        assert server.requests == 2


def test_azure_paths_and_its_limit_on_data_urls():
    with FakeServer(max_data_url_chars=1000) as server:
        body = chat()
        del body["model"]
        status, _, answer = send(server, "/openai/deployments/my-gpt/chat/completions?api-version=1", body)
        assert (status, answer["model"]) == (200, "my-gpt-2026-01-01")
        status, _, answer = send(server, "/openai/v1/responses", responses())
        assert status == 400
        assert "valid URL" in answer["error"]["message"]


def test_a_model_that_is_gone():
    with FakeServer(retired=["gpt-4.1"]) as server:
        status, _, answer = send(server, "/chat/completions", chat(model="gpt-4.1"))
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert "gpt-4.1" not in {model["id"] for model in get(f"{server.url}/models")["data"]}
        assert send(server, "/chat/completions", chat(model="gpt-4.1-mini"))[0] == 200


def test_parameters_of_other_servers_can_be_allowed():
    with FakeServer(allow=["top_k"]) as server:
        assert send(server, "/chat/completions", chat(top_k=1))[0] == 200
        assert send(server, "/chat/completions", chat(top_q=1))[0] == 400


# --- answers ---


def test_an_answer_is_cut_at_its_limit():
    with FakeServer() as server:
        _, _, answer = send(server, "/chat/completions", chat(max_tokens=5))
        assert answer["choices"][0]["finish_reason"] == "length"
        assert 0 < answer["usage"]["completion_tokens"] <= 5
        _, _, answer = send(server, "/responses", responses(max_output_tokens=5))
        assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
        assert [entry.outcome for entry in server.ledger] == ["length", "length"]


def test_reasoning_uses_up_the_output():
    with FakeServer() as server:
        body = chat(model="gpt-6-luna", max_completion_tokens=200)
        _, _, answer = send(server, "/chat/completions", body)
        assert answer["choices"][0] == {
            "index": 0,
            "message": {"role": "assistant", "content": "", "refusal": None, "annotations": []},
            "finish_reason": "length",
            "logprobs": None,
        }
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 200
        _, _, answer = send(server, "/chat/completions", {**body, "reasoning_effort": "none", "temperature": 0.5})
        assert number_in_text(text_of(answer)) == 1
        _, _, answer = send(server, "/responses", responses(model="gpt-6-luna", max_output_tokens=100))
        assert [item["type"] for item in answer["output"]] == ["reasoning"]
        assert [entry.outcome for entry in server.ledger] == ["empty", "ok", "empty"]
        assert server.ledger[0].output_tokens == server.ledger[0].reasoning_tokens == 200


def test_structured_output_is_honoured():
    chat_format = {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": CAPTION_SCHEMA}}
    shape = {"format": {"type": "json_schema", "name": "c", "strict": True, "schema": CAPTION_SCHEMA}}
    with FakeServer() as server:
        for path, body in (
            ("/chat/completions", chat(9, response_format=chat_format)),
            ("/responses", responses(9, text=shape)),
        ):
            value = json.loads(text_of(send(server, path, body)[2]))
            assert value.keys() == {"brief", "dense", "people"}
            assert number_in_text(value["brief"]) == number_in_text(value["dense"]) == 9
            assert len(value["brief"].split()) <= 12 < len(value["dense"].split())
            assert isinstance(value["people"], int)
        plain = send(server, "/chat/completions", chat(9))[2]["usage"]["prompt_tokens"]
        assert server.ledger[0].input_tokens > plain  # a schema is read, too
        _, _, answer = send(server, "/chat/completions", chat(9, response_format={"type": "json_object"}))
        assert json.loads(text_of(answer)).keys() == {"caption"}
        open_schema = {**chat_format["json_schema"], "schema": {**CAPTION_SCHEMA, "additionalProperties": True}}
        body = chat(response_format={"type": "json_schema", "json_schema": open_schema})
        status, _, answer = send(server, "/chat/completions", body)
        assert (status, answer["error"]["code"]) == (400, "invalid_json_schema")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "items": {"type": "string"}}, 'type: "object"'),
        ({"type": "object"}, "needs 'properties'"),
        ({"type": "object", "properties": {}}, "additionalProperties"),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, "Missing 'a'"),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {}}}},
                "required": ["a"],
                "additionalProperties": False,
            },
            "/properties/a/items",
        ),
        ({"type": "object", "properties": {}, "additionalProperties": False, "allOf": []}, "allOf"),
        ("no schema", 'type: "object"'),
    ],
)
def test_schemas_that_cannot_be_strict(schema, words):
    assert words in strict_schema_fault(schema)


def test_the_recipes_of_lens_have_schemas_that_are_filled():
    import yaml

    from lens_caption import prompts

    schemas = []
    for path in sorted(Path(prompts.__path__[0]).glob("*.yaml")):
        schema = yaml.safe_load(path.read_text(encoding="utf-8")).get("schema")
        if schema:
            assert strict_schema_fault(schema) is None, path
            filled = json.loads(fill(schema, caption_of(numbered_image(3))))
            assert filled.keys() == set(schema["required"]), path
            schemas.append(path.stem)
    assert len(schemas) >= 3


def test_filling_a_schema():
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["photo", "drawing"]},
            "fixed": {"const": 3},
            "either": {"anyOf": [{"type": "null"}, {"type": "string"}]},
            "score": {"type": "number", "minimum": 4},
            "small": {"type": "integer", "maximum": 0},
            "two": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 2},
            "yes": {"type": "boolean"},
            "cut": {"type": "string", "maxLength": 7},
        },
        "$defs": {"item": {"type": "object", "properties": {"name": {"type": "string"}}}},
    }
    value = json.loads(fill(schema, "The number 4 on a field."))
    assert value["kind"] in {"photo", "drawing"}
    assert (value["fixed"], value["either"], value["score"], value["small"]) == (3, None, 4, 0)
    assert [item["name"] for item in value["two"]] == ["The number 4 on a field"] * 2
    assert (value["yes"], value["cut"]) == (True, "The num")


def test_an_uploaded_image_by_its_id():
    with FakeServer() as server, openai.OpenAI(api_key="x", base_url=server.url, max_retries=0) as client:
        file = client.files.create(file=("a.jpg", io.BytesIO(numbered_jpeg(8, 64, 64))), purpose="vision")
        body = responses()
        body["input"][0]["content"][1] = {"type": "input_image", "file_id": file.id, "detail": "auto"}
        assert number_in_text(text_of(send(server, "/responses", body)[2])) == 8
        client.files.delete(file.id)
        assert "No such file" in send(server, "/responses", body)[2]["error"]["message"]


def test_a_cache_by_prefix_answers_about_the_first_image():
    first, second = Image.new("RGB", (256, 256), "navy"), Image.new("RGB", (256, 256), "navy")
    second.paste("orange", (0, 128, 256, 256))
    bodies = []
    for image in (first, second):
        stream = io.BytesIO()
        image.save(stream, "BMP")
        stream = io.BytesIO()
        image.save(stream, "PNG", compress_level=0)
        body = chat()
        body["messages"][0]["content"][1]["image_url"]["url"] = data_url(stream.getvalue(), "png")
        bodies.append(body)
    with FakeServer() as server:
        assert len({text_of(send(server, "/chat/completions", body)[2]) for body in bodies}) == 2
    with FakeServer(prefix_cache=True) as server:
        assert len({text_of(send(server, "/chat/completions", body)[2]) for body in bodies}) == 1


def test_a_glance_at_a_draft_is_enough_for_a_number():
    with FakeServer(look="draft", like={"test-model": "gpt-4.1"}) as server:
        _, _, answer = send(server, "/chat/completions", chat(77, size=(1024, 768)))
        assert number_in_text(text_of(answer)) == 77
        assert "1024 by 768 pixels" in text_of(answer)
        assert server.ledger[0].input_tokens == 765 + 2 + 6
        body = chat()
        url = data_url(numbered_jpeg(1)[: len(numbered_jpeg(1)) // 2])
        body["messages"][0]["content"][1]["image_url"]["url"] = url
        assert "truncated" in send(server, "/chat/completions", body)[2]["error"]["message"]


def test_without_looking_only_the_header_is_read():
    cut = numbered_jpeg(1, 256, 256)[:-300]
    body = chat()
    body["messages"][0]["content"][1]["image_url"]["url"] = data_url(cut)
    with FakeServer(look="header") as server:
        status, _, answer = send(server, "/chat/completions", body)
        assert status == 200
        assert hashlib.sha256(cut).hexdigest()[:16] in text_of(answer)
        assert "256 by 256" in text_of(answer)
