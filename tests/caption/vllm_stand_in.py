"""Stands in for `vllm run-batch`: the same arguments and files, and the fake server's eyes instead of a model.

What vLLM does is told by its source (entrypoints/openai/run_batch.py): all lines are answered before the file is
written; an error of a request has no body, its status in `status_code`, and the reason in `error`. VLLM_FAULT says what
goes wrong:

    half      it is killed in the middle of a line
    errors    every third request fails with 500, one with a text for a reason
    refuse    the first request is refused as a bad request
    refuse-all   and so is every other
    foreign   the answers are about other requests
    log       a line of a log stands between the answers
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from lens_caption.testing.openai_server.clock import Clock
from lens_caption.testing.openai_server.ledger import Ledger
from lens_caption.testing.openai_server.model import Model, ModelSettings, Refused


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["run-batch"])
    parser.add_argument("-i", required=True)
    parser.add_argument("-o", required=True)
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    fault = os.environ.get("VLLM_FAULT", "")
    ledger = Ledger(os.environ["VLLM_LEDGER"])
    model = Model(ModelSettings(), ledger, Clock.of("real"), {}.__getitem__)
    lines = []
    for number, line in enumerate(Path(options.i).read_text().strip().split("\n")):
        request = json.loads(line)
        assert request.keys() == {"custom_id", "method", "url", "body"}
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
        lines.append(answer(model, request, options.model, fault, number))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if fault == "half":
        text = text[: len(text) * 6 // 10]
    if fault == "log":
        first, _, rest = text.partition("\n")
        text = f"{first}\nINFO 11-25 12:00:00 engine started\n{rest}"
    Path(options.o).write_text(text)
    ledger.close()


def answer(model, request, served, fault, number):
    key = request["custom_id"]
    if fault == "foreign":
        key = f"request-{number}"
    if request["body"]["model"] != served:
        return error(key, 404, f"The model `{request['body']['model']}` does not exist.", "NotFoundError")
    if fault == "errors" and number % 3 == 0:
        return error(key, 500, "the engine died" if number else None, "InternalServerError")
    if fault == "refuse-all" or (fault == "refuse" and number == 0):
        return error(key, 400, "image token count exceeds the context", "BadRequestError")
    try:
        body = model.answer(model.read("/v1/chat/completions", request["body"]), custom_id=key)
    except Refused as refused:
        return error(key, refused.status, str(refused), "BadRequestError")
    return {
        "id": f"vllm-{number}",
        "custom_id": key,
        "response": {"status_code": 200, "request_id": f"vllm-batch-{number}", "body": body},
        "error": None,
    }


def error(key, status, message, kind):
    told = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return {
        "id": "vllm-x",
        "custom_id": key,
        "response": {"status_code": status, "request_id": "vllm-batch-x", "body": None},
        "error": told if message else "stream mode is not for batches",
    }


if __name__ == "__main__":
    sys.exit(main())
