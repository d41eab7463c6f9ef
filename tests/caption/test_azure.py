"""Azure's dialect: addresses, key, versions, its content filter, its batches, against a server that speaks it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from caption.runs import Run
from lens_caption.captioners.openai.captioner import OpenAICaptioner
from lens_caption.captioners.openai.config import OpenAIConfig
from lens_caption.captioners.openai.outcomes import outcome_of
from lens_caption.engine.policy import fate_of_error, filtered_for
from lens_caption.prompts import load_recipe
from lens_caption.testing.openai_server import Azure, BatchSettings, FakeServer, numbered_jpeg
from lens_core.contracts import ImageItem
from lens_core.errors import LensError

HOST = "https://photos.openai.azure.com"
VERSION = "2024-10-21"
QUICK = BatchSettings(validate_s=0.05, process_s=0.1, finalize_s=0.05)


def config(base_url, **options):
    return OpenAIConfig(model="captions", base_url=base_url, **options)


@pytest.mark.parametrize(
    ("base_url", "version", "answers", "files"),
    [
        (f"{HOST}/openai/v1/", None, f"{HOST}/openai/v1", f"{HOST}/openai/v1"),
        (f"{HOST}/openai/v1", "preview", f"{HOST}/openai/v1", f"{HOST}/openai/v1"),
        (f"{HOST}/", None, f"{HOST}/openai/v1", f"{HOST}/openai/v1"),
        (f"{HOST}/openai", None, f"{HOST}/openai/v1", f"{HOST}/openai/v1"),
        (HOST, VERSION, f"{HOST}/openai/deployments/captions", f"{HOST}/openai"),
        (f"{HOST}/openai", VERSION, f"{HOST}/openai/deployments/captions", f"{HOST}/openai"),
        (f"{HOST}/openai/deployments/other", VERSION, f"{HOST}/openai/deployments/other", f"{HOST}/openai"),
        ("https://x.services.ai.azure.com/models", None, *["https://x.services.ai.azure.com/models"] * 2),
    ],
)
def test_addresses(base_url, version, answers, files):
    made = config(base_url, api_version=version)
    assert made.is_azure
    assert made.speaks == "chat"
    assert (made.answers_url, made.files_url) == (answers, files)


def test_only_azure_is_asked_as_azure():
    for base_url in ("https://api.openai.com/v1", "http://localhost:8000/v1", "https://azure.com.example.org/openai"):
        made = config(base_url, api_version="1")
        assert not made.is_azure
        assert made.answers_url == made.files_url == base_url
    gateway = config("https://ai.example.org/llm/openai/v1", dialect="azure")
    assert gateway.is_azure
    assert gateway.answers_url == "https://ai.example.org/llm/openai/v1"
    assert not config(f"{HOST}/openai/v1", dialect="openai").is_azure


def test_what_cannot_be_asked_is_told_when_the_pipeline_is_checked():
    with pytest.raises(ValueError, match="a deployment's address wants an api_version"):
        config(f"{HOST}/openai/deployments/captions")
    with pytest.raises(ValueError, match="deployments know chat only"):
        config(HOST, api_version=VERSION, api="responses")


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "right")


def of(server, address="v1", **options):
    """A captioner for the newer API, or one for the older."""
    older = {"base_url": f"{server.control_url}/openai", "api_version": VERSION}
    where = {"base_url": server.url} if address == "v1" else older
    options = {"dialect": "azure", "api_key_env": "AZURE_OPENAI_API_KEY", "max_wait_s": 0.1, **where, **options}
    return OpenAICaptioner(OpenAIConfig(model="gpt-4.1", **options))


def images(count):
    return [ImageItem(key=f"{number:064d}", data=numbered_jpeg(number, 96, 96)) for number in range(count)]


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize(("address", "api"), [("v1", "chat"), ("v1", "responses"), ("deployment", "chat")])
def test_captions(address, api):
    with FakeServer(azure=Azure(), api_key="right") as server:
        captioner = of(server, address, api=api)
        outcomes = captioner.caption(images(3))
        captioner.close()
        assert sorted(entry.number for entry in server.ledger) == [0, 1, 2]
    assert [outcome.status for outcome in outcomes] == ["ok"] * 3, outcomes[0].detail
    assert [f"number {number}" in outcome.text for number, outcome in enumerate(outcomes)] == [True] * 3
    assert outcomes[0].provenance["api"] == api


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("address", ["v1", "deployment"])
def test_the_content_filter_refuses_an_image(address):
    with FakeServer(azure=Azure(filters=frozenset({1})), api_key="right") as server:
        captioner = of(server, address)
        outcomes = captioner.caption(images(3))
        captioner.close()
        assert server.requests == 3, "it is not asked again"
    assert [outcome.status for outcome in outcomes] == ["ok", "content-filter", "ok"]
    assert outcomes[1].detail == "HTTP 400: the provider's content filter (violence: medium)"


@pytest.mark.usefixtures("key")
def test_the_content_filter_stops_an_answer():
    with FakeServer(azure=Azure(), api_key="right", faults=["content-filter"]) as server:
        captioner = of(server)
        (outcome,) = captioner.caption(images(1))
        captioner.close()
    assert outcome.status == "content-filter"
    assert outcome.detail == "the provider's content filter stopped the answer (violence: medium)"


@pytest.mark.parametrize(
    ("address", "options", "words"),
    [
        ("v1", {"api_key_env": "WRONG_KEY"}, "HTTP 401: Access denied"),
        ("v1", {"model": "no-such-model"}, "refuses the model 'no-such-model': HTTP 404"),
        ("deployment", {"model": "no-such-model"}, "refuses the model 'no-such-model': HTTP 404"),
        ("deployment", {"api_version": "last"}, "HTTP 404: Resource not found"),
        ("v1", {"dialect": "openai"}, "HTTP 401: Access denied"),
    ],
)
@pytest.mark.usefixtures("key")
def test_what_refuses_everything_stops_the_run(address, options, words, monkeypatch):
    monkeypatch.setenv("WRONG_KEY", "wrong-secret")
    with FakeServer(azure=Azure(), api_key="right") as server:
        older = {"base_url": f"{server.control_url}/openai", "api_version": VERSION}
        where = {"base_url": server.url} if address == "v1" else older
        base = {"model": "gpt-4.1", "dialect": "azure", "api_key_env": "AZURE_OPENAI_API_KEY", **where}
        captioner = OpenAICaptioner(OpenAIConfig(**base | options))
        with pytest.raises(LensError, match=words) as caught:
            captioner.caption(images(1))
        captioner.close()
    assert "wrong-secret" not in str(caught.value)


def test_azure_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("AZURE_OPENAI_API_KEY", raising=False)
    with pytest.raises(LensError, match="Azure needs an API key: export AZURE_OPENAI_API_KEY="):
        OpenAICaptioner(config(HOST, api_key_env="AZURE_OPENAI_API_KEY"))


def error(code="content_filter", inner="ResponsibleAIPolicyViolation", result=None, **more):
    innererror = {"code": inner, "content_filter_result": result}
    return {"error": {"code": code, "message": "it was filtered", "innererror": innererror, **more}}


@pytest.mark.parametrize(
    ("body", "fate", "detail"),
    [
        (error(), "content-filter", "HTTP 400: it was filtered"),
        (error(result={"hate": {"filtered": False}}), "content-filter", "HTTP 400: it was filtered"),
        (
            error(
                result={
                    "jailbreak": {"detected": True, "filtered": True},
                    "sexual": {"filtered": True, "severity": "high"},
                }
            ),
            "content-filter",
            "HTTP 400: the provider's content filter (jailbreak: detected, sexual: high)",
        ),
        (error(code=None), "content-filter", "HTTP 400: it was filtered"),
        (error(inner=None), "content-filter", "HTTP 400: it was filtered"),
        (error(result="odd"), "content-filter", "HTTP 400: it was filtered"),
        ({"error": {"code": "content_filter", "innererror": "odd"}}, "content-filter", "HTTP 400: content_filter"),
        (error(code="BadRequest", inner="other"), "bad-image", "HTTP 400: it was filtered"),
        (error(code="OperationNotSupported", inner="other"), "refused-all", "HTTP 400: it was filtered"),
    ],
)
def test_errors_of_the_filter(body, fate, detail):
    assert fate_of_error(400, body) == (fate, detail)


def test_a_filter_that_did_not_work_says_nothing():
    results = {"error": {"code": "content_filter_error", "message": "timed out"}, "hate": {"filtered": False}}
    assert filtered_for(results) == ""
    answer = {
        "model": "m",
        "id": "x",
        "choices": [{"finish_reason": "stop", "message": {"content": "A cat."}, "content_filter_results": results}],
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": results}],
    }
    outcome, _ = outcome_of("k", answer, {}, load_recipe("dense-1"))
    assert (outcome.status, outcome.text) == ("ok", "A cat.")


# In a pipeline


class AzureRun(Run):
    def azure(self, server, address, **engine):
        older = {"base_url": f"{server.control_url}/openai", "api_version": VERSION}
        where = {"base_url": server.url} if address == "v1" else older
        captioner = {"dialect": "azure", "api_key_env": "AZURE_OPENAI_API_KEY", **where}
        return self.run(server, captioner, **engine)


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("address", ["v1", "deployment"])
def test_batches(tmp_path, address):
    """Uploads take a while until they are usable; a filtered line is an outcome like any other."""
    run = AzureRun(tmp_path, 12)
    with FakeServer(azure=Azure(filters=frozenset({5})), api_key="right", batches=QUICK) as server:
        code, said = run.azure(server, address, lane="batch", batch={"poll_s": 0.05, "max_requests": 8})
        assert code == 0, said
        batches = server.batches.all()
        assert {batch["endpoint"] for batch in batches} == {
            "/v1/chat/completions" if address == "v1" else "/chat/completions"
        }
        assert sorted(batch["request_counts"]["total"] for batch in batches) == [4, 8]
        assert {file["expires_at"] is not None for file in server.files.all("batch_output")} == {address == "v1"}
        assert server.files.all("batch") == []
        assert server.ledger.billed_again() == 0
        rows = run.rows()
        cost = sum(json.loads(row["provenance"]).get("input_tokens", 0) for row in rows)
        assert cost == server.ledger.input_tokens()
    run.assert_captions_are_right(failed=1)
    (filtered,) = [row for row in rows if row["status"] != "ok"]
    assert filtered["status"] == "content-filter"


@pytest.mark.usefixtures("key")
def test_what_the_filter_refuses_may_have_been_billed(tmp_path):
    """Azure bills for having read it, and does not say how much: the budget counts the worst."""
    run = AzureRun(tmp_path, 6)
    with FakeServer(azure=Azure(filters=frozenset(range(6))), api_key="right") as server:
        code, said = run.azure(server, "v1", budget={"images": 4}, lane="sync")
        assert code == 3, said
        assert server.requests == 4
    assert set(run.journalled().values()) == {"content-filter"}


# The server's own strictness


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/openai/v1/models", {"api-key": "right"}, 200, None),
        ("/openai/v1/models", {"Authorization": "Bearer right"}, 401, "401"),
        ("/v1/models", {"api-key": "right"}, 404, "404"),
        ("/openai/batches", {"api-key": "right"}, 404, "404"),
        ("/openai/batches?api-version=2024-10-21", {"api-key": "right"}, 200, None),
        ("/openai/batches?api-version=soon", {"api-key": "right"}, 404, "404"),
        ("/openai/models?api-version=2024-10-21", {"api-key": "right"}, 404, "404"),
    ],
)
def test_the_fake_server_is_as_strict(path, headers, status, code):
    with FakeServer(azure=Azure(), api_key="right") as server:
        request = urllib.request.Request(server.control_url + path, headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                found, body = answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            found, body = refused.code, json.load(refused)
            refused.close()
    assert found == status
    assert body.get("error", {}).get("code") == code
