"""The one table of what follows from what."""

from __future__ import annotations

from typing import get_args

import pytest

from lens_caption.engine.policy import POLICIES, Fate, fate_of_error
from lens_core.contracts import Status


def test_every_fate_has_a_policy_and_every_status_a_fate():
    assert set(POLICIES) == set(get_args(Fate))
    assert {policy.status for policy in POLICIES.values()} == set(get_args(Status))


def test_only_ok_is_a_caption_and_only_transport_is_tried_again():
    for fate, policy in POLICIES.items():
        assert (policy.status == "ok") == (fate == "ok")
        assert not policy.again or policy.status == "transport"
        assert not (policy.again and policy.stops)


def test_what_may_have_been_billed_is_charged():
    assert {fate for fate, policy in POLICIES.items() if policy.charge == "reserved"} == {"lost", "garbled"}


@pytest.mark.parametrize(
    ("status", "error", "fate"),
    [
        (429, {"code": "rate_limit_exceeded", "message": "slow"}, "busy"),
        (429, {"code": "insufficient_quota", "message": "dry"}, "refused-all"),
        (429, {"type": "insufficient_quota", "message": "dry"}, "refused-all"),
        (429, None, "busy"),
        (500, None, "server-error"),
        (503, {"message": "over"}, "server-error"),
        (408, None, "lost"),
        (504, None, "lost"),
        (524, None, "lost"),
        (409, None, "server-error"),
        (400, {"code": 400, "type": "BadRequestError", "message": "m is not a multimodal model"}, "bad-image"),
        (400, {"code": "invalid_image", "message": "no"}, "bad-image"),
        (400, {"code": "unsupported_value", "message": "temperature"}, "refused-all"),
        (400, {"code": "invalid_json_schema", "message": "schema"}, "refused-all"),
        (413, None, "bad-image"),
        (401, {"message": "key"}, "refused-all"),
        (404, {"code": "model_not_found"}, "refused-all"),
        (307, None, "refused-all"),
        (403, {"code": 403, "message": "Your input was flagged by moderation: violence"}, "content-filter"),
        (403, {"message": "Blocked by our content policy"}, "content-filter"),
        (422, {"code": "content_policy_violation", "message": "no"}, "content-filter"),
        (451, {"message": "The content filter stopped it"}, "content-filter"),
        (403, {"message": "Your account was flagged; see our content policy"}, "refused-all"),
        (403, {"message": "This country is not supported"}, "refused-all"),
        (401, {"message": "no key, no moderation"}, "refused-all"),
    ],
)
def test_fates_of_errors(status, error, fate):
    found, detail = fate_of_error(status, {"error": error} if error else None)
    assert found == fate
    assert detail.startswith(f"HTTP {status}: ")


@pytest.mark.parametrize("body", [None, [], "x", 3, {}, {"error": "text"}, {"error": []}, {"detail": "vLLM says so"}])
def test_bodies_of_any_shape(body):
    fate, detail = fate_of_error(500, body)
    assert fate == "server-error"
    assert "\n" not in detail
