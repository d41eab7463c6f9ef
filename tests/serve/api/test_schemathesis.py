"""Requests that nobody would think of, made from the OpenAPI document: no 5xx, and no answer that it does not tell."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import GenerationMode
from schemathesis import checks as general
from schemathesis.specs.openapi import checks


def no_server_error(context, response, case):
    """But for deadlines that clients make themselves."""
    if response.status_code != 504 or response.json()["error"]["code"] != "deadline":
        general.not_a_server_error(context, response, case)


CHECKS = [
    no_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
    checks.unsupported_method,
    checks.allow_header_conformance,
]
"""All but `positive_data_acceptance`: a schema cannot say which products of width and height are within bounds."""

WITH_INPUT = [
    "POST /v1/images/generations",
    "POST /v1/images/edits",
    "GET /v1/models/{model}",
    "POST /v1/images/jobs",
    "GET /v1/images/jobs/{id}",
    "DELETE /v1/images/jobs/{id}",
    "GET /v1/images/jobs/{id}/events",
]
WITHOUT_INPUT = ["GET /v1/models", "GET /health/live", "GET /health/ready"]


@pytest.fixture(scope="module")
def document(live):
    return schemathesis.openapi.from_url(f"{live.url}/openapi.json")


def test_all_routes_are_known_here(document):
    told = [operation.ok().label for operation in document.get_all_operations()]
    assert sorted(told) == sorted(WITH_INPUT + WITHOUT_INPUT)


def fuzz(document, label, mode, examples, **options):
    """Send so many requests of a kind."""
    method, path = label.split()
    unimportant = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=unimportant, **options
    )
    @hypothesis.given(case=document[path][method].as_strategy(mode))
    def check(case):
        case.validate_response(case.call(timeout=120), checks=CHECKS)

    check()


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", WITH_INPUT)
def test_a_thousand_requests(document, label, mode):
    fuzz(document, label, mode, 200 if label == WITH_INPUT[0] else 50, derandomize=True)


@pytest.mark.parametrize("label", WITHOUT_INPUT)
def test_requests_that_say_nothing(document, label):
    fuzz(document, label, GenerationMode.POSITIVE, 1, derandomize=True)


@pytest.mark.soak
@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", WITH_INPUT)
def test_ten_thousand_requests(document, label, mode):
    fuzz(document, label, mode, 3000 if label == WITH_INPUT[0] else 350)
