"""The OpenAPI document says what is true of this server."""

from __future__ import annotations

import json

import pytest

from lens_core.registry import load_registry
from lens_serve.api.app import create_app
from lens_serve.server import Server
from serve.live import settings_for


@pytest.fixture(scope="module")
def document(live):
    with live.http() as client:
        answer = client.get("/openapi.json")
        assert answer.headers["content-type"] == "application/json"
        return answer.json()


def operations(document):
    return [operation for path in document["paths"].values() for operation in path.values()]


def kind(document, model, field):
    """The schema of a field without its null."""
    schema = document["components"]["schemas"][model]["properties"][field]
    return next(one for one in schema.get("anyOf", [schema]) if one.get("type") != "null")


def test_requests_are_strict(document):
    for model in ("Generation", "GenerationLens", "EditForm", "EditLens"):
        assert document["components"]["schemas"][model]["additionalProperties"] is False
    body = document["paths"]["/v1/images/generations"]["post"]["requestBody"]
    assert list(body["content"]) == ["application/json"]
    assert body["required"]
    body = document["paths"]["/v1/images/edits"]["post"]["requestBody"]
    assert list(body["content"]) == ["multipart/form-data"]


TEXTS = {"prompt", "negative_prompt", "user", "safety_identifier"}
"""What a client writes freely; all of it is drawn or given back, and none of it opened or fetched."""


def fields_of(document, schema):
    """(name, schema without its null) of all fields of a request's body, those of objects in it included."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "contentSchema" in schema:  # JSON in a form's field
        yield from fields_of(document, schema["contentSchema"])
    for one in schema.get("anyOf", ()):
        yield from fields_of(document, one)
    for name, field in schema.get("properties", {}).items():
        kinds = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
        yield from ((name, one) for one in kinds)
        yield from fields_of(document, field)


def test_nothing_that_is_sent_names_a_place(document):
    """No path, no URL: a client cannot make the server open or fetch anything."""
    bodies = [operation["requestBody"] for operation in operations(document) if "requestBody" in operation]
    assert len(bodies) == 3
    seen = set()
    for body in bodies:
        (content,) = body["content"].values()
        for name, field in fields_of(document, content["schema"]):
            seen.add(name)
            assert not {"url", "uri", "path", "file", "folder", "callback", "webhook"} & set(name.split("_")), name
            if field.get("type") == "string" and name not in TEXTS and "enum" not in field and "const" not in field:
                is_file = field.get("format") == "binary" or "contentMediaType" in field
                assert is_file or "/" not in field["pattern"], name
                assert not is_file or name in {"image", "mask", "lens"}, name
    assert seen >= {*TEXTS, "model", "size", "lora", "image", "mask", "seed", "strength"}


def test_bounds_are_those_of_the_server(document, tiny_folder):
    assert kind(document, "GenerationLens", "steps")["maximum"] == 8
    bounds = {"max_images": 2, "max_steps": 7, "max_guidance": 5.0, "max_prompt_chars": 10}
    server = Server.build(settings_for(tiny_folder, bounds=bounds), load_registry())
    other = create_app(server).openapi()
    server.encoders.close()
    for lens, request in (("GenerationLens", "Generation"), ("EditLens", "EditForm")):
        assert kind(other, request, "n")["maximum"] == 2
        assert kind(other, request, "prompt")["maxLength"] == 10
        assert kind(other, lens, "steps")["maximum"] == 7
        assert kind(other, lens, "guidance")["maximum"] == 5.0
        assert kind(other, lens, "negative_prompt")["maxLength"] == 10


def test_every_answer_is_told(document):
    for operation in operations(document):
        assert "422" not in operation["responses"]
        for status, response in operation["responses"].items():
            assert response["headers"]["x-request-id"]["required"]
            if status >= "400" and "health" not in operation["tags"]:
                assert list(response["content"]) == ["application/json"]
                assert response["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    draws = document["paths"]["/v1/images/generations"]["post"]["responses"]
    assert set(draws) == {"200", "400", "401", "403", "404", "408", "409", "413", "421", "429", "500", "503", "504"}


def events(content):
    """What the data of an event may be, by name."""
    data = content["text/event-stream"]["itemSchema"]["properties"]["data"]["contentSchema"]
    return [one["$ref"].rpartition("/")[2] for one in data["oneOf"]]


def test_streams_are_told(document):
    for path in ("generations", "edits"):
        content = document["paths"][f"/v1/images/{path}"]["post"]["responses"]["200"]["content"]
        assert set(content) == {"application/json", "text/event-stream"}
        assert content["application/json"]["schema"]["$ref"].endswith("/ImagesAnswer")
        assert events(content) == ["StreamEvent", "ErrorAnswer"]
    content = document["paths"]["/v1/images/jobs/{id}/events"]["get"]["responses"]["200"]["content"]
    assert set(content) == {"text/event-stream"}
    assert events(content) == ["StreamEvent", "ErrorAnswer"]


def test_all_that_is_referred_to_is_there(document):
    text = json.dumps(document)
    named = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named == set(document["components"]["schemas"])


def test_the_document_has_no_page_that_loads_from_elsewhere(live):
    with live.http() as client:
        assert [client.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]
