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
                (schema,) = [content["schema"] for content in response["content"].values()]
                assert schema["$ref"].endswith("/ErrorAnswer")
    draws = document["paths"]["/v1/images/generations"]["post"]["responses"]
    assert set(draws) == {"200", "400", "401", "403", "404", "408", "409", "413", "421", "429", "500", "503", "504"}


def test_streams_are_told(document):
    for path in ("generations", "edits"):
        content = document["paths"][f"/v1/images/{path}"]["post"]["responses"]["200"]["content"]
        assert set(content) == {"application/json", "text/event-stream"}
        assert content["application/json"]["schema"]["$ref"].endswith("/ImagesAnswer")
        event = content["text/event-stream"]["itemSchema"]["properties"]["data"]["contentSchema"]
        assert [one["$ref"].rpartition("/")[2] for one in event["oneOf"]] == ["StreamEvent", "ErrorAnswer"]


def test_all_that_is_referred_to_is_there(document):
    text = json.dumps(document)
    named = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named == set(document["components"]["schemas"])


def test_the_document_has_no_page_that_loads_from_elsewhere(live):
    with live.http() as client:
        assert [client.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]
