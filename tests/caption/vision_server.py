"""A small vision model behind a chat endpoint, on a real socket: it sees one coloured shape, describes it in wandering
words, and judges statements about it; it can mistake one image for another as real servers have."""

from __future__ import annotations

import base64
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from lens_core.images import decode

COLOURS = {
    "red": (214, 30, 36),
    "green": (24, 140, 62),
    "blue": (32, 70, 205),
    "yellow": (250, 212, 30),
    "black": (16, 16, 16),
}
WORDINGS = (
    "A grey {shape} lies on {colour} ground that fills the lower half of the picture.",
    "Below a flat light grey field there is a {colour} one of the same size, with one solid {shape} in its middle.",
    "Simple graphic of a {shape} cut out of {colour}, placed near the bottom edge, and grey above.",
    "One {shape}, evenly filled, centred in the {colour} lower part; the rest of the picture is empty and grey.",
)


def seen(pixels_HW3):
    """Colour and shape of the lower half."""
    lower_HW3 = pixels_HW3[len(pixels_HW3) * 17 // 32 :].astype(int)
    ground = lower_HW3[-3:, :3].mean(axis=(0, 1))
    figure_HW = np.abs(lower_HW3 - ground).max(axis=2) > 60
    rows, columns = np.flatnonzero(figure_HW.any(axis=1)), np.flatnonzero(figure_HW.any(axis=0))
    box = figure_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    colour = min(COLOURS, key=lambda name: np.abs(np.asarray(COLOURS[name]) - ground).sum())
    fill, foot = box.mean(), box[-max(1, len(box) // 10) :].mean()
    return colour, "square" if fill > 0.95 else "circle" if fill > 0.7 else "triangle" if foot > 0.8 else "cross"


class VisionServer:
    """The server, as a context manager.

    Args:
        crossing: share of the answers that are about the image that was asked about before.
        cache_prefix: answers are cached by so many characters of the image's base64.
        trusting: the judge calls everything true that is shown in the first third.
        script: what successive requests meet first: a status, or "quota", "html", "redirect", "refusal", "length",
            "verdict-missing".
    """

    def __init__(self, *, crossing=0.0, cache_prefix=None, trusting=False, script=()):
        self.crossing, self.cache_prefix, self.trusting = crossing, cache_prefix, trusting
        self.bodies, self.keys = [], []
        self.script = list(script)
        self.lock = threading.Lock()
        self.rng = random.Random(0)
        self.last = None
        self.cache = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.owner = self

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, body):
        text, image = body["messages"][-1]["content"]
        payload = image["image_url"]["url"].partition(",")[2]
        look = seen(decode(base64.b64decode(payload)))
        with self.lock:
            if "response_format" in body:
                return json.dumps({"verdicts": self.verdicts(text["text"], look)})
            before, self.last = self.last, look
            if before and self.rng.random() < self.crossing:
                look = before
            said = self.rng.choice(WORDINGS).format(colour=look[0], shape=look[1])
            if self.cache_prefix:
                said = self.cache.setdefault(payload[: self.cache_prefix], said)
            return said

    def verdicts(self, instruction, look):
        statements = json.loads(instruction[instruction.index("[\n") :])
        found = []
        for place, item in enumerate(statements):
            words = set(item["statement"].lower().replace(".", "").replace(",", "").split())
            claims = words & {*COLOURS, "circle", "square", "triangle", "cross"}
            verdict = "supported" if claims <= set(look) else "contradicted"
            if "mood" in words:
                verdict = "undecidable"
            if self.trusting and place < len(statements) / 3:
                verdict = "supported"
            reason = f"it is a {' '.join(look)}" if verdict == "contradicted" else ""
            found.append({"number": item["number"], "verdict": verdict, "reason": reason})
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self):
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with owner.lock:
            owner.bodies.append(body)
            owner.keys.append(self.headers.get("Authorization"))
            fault = owner.script.pop(0) if owner.script else "ok"
        if fault in {"429", "500", "401", "400"}:
            self.send(int(fault), {"error": {"message": f"no: {fault}", "code": fault}})
        elif fault == "quota":
            self.send(429, {"error": {"message": "empty", "code": "insufficient_quota"}})
        elif fault == "redirect":
            self.send_response(307)
            self.send_header("Location", "http://127.0.0.1:9/steal")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "html":
            self.send(200, None)
        else:
            text = owner.answer(body)
            if fault == "verdict-missing":
                text = json.dumps({"verdicts": json.loads(text)["verdicts"][1:]})
            refusal = "No." if fault == "refusal" else None
            message = {"role": "assistant", "content": None if refusal else text, "refusal": refusal}
            reason = "length" if fault == "length" else "stop"
            self.send(
                200,
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "seer-1",
                    "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                },
            )

    def send(self, status, value):
        data = b"<html></html>" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
