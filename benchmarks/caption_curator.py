"""The part of `benchmarks/caption.py` that runs in an environment with `bespokelabs-curator`; it knows nothing of Lens.

Captions the JPEG files of a folder the way curator's documentation does it, with the images scaled and encoded as in
the loop over the SDK, and prints one line of JSON. Telemetry, the viewer and every download are off.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import os
import re
import tempfile
import time
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("--folder", type=Path)
parser.add_argument("--images", type=int)
parser.add_argument("--max-side", type=int)
parser.add_argument("--in-flight", type=int)
parser.add_argument("--model")
parser.add_argument("--url")
OPTIONS = parser.parse_args()

HOME = tempfile.mkdtemp(dir=OPTIONS.folder)
os.environ |= {
    "TELEMETRY_ENABLED": "false",
    "HOME": HOME,
    "CURATOR_CACHE_DIR": HOME,
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    # The vocabulary that curator would download comes with one of its dependencies.
    "TIKTOKEN_CACHE_DIR": str(distribution("litellm").locate_file("litellm/litellm_core_utils/tokenizers")),
}

from bespokelabs import curator  # noqa: E402 (it reads the environment)
from PIL import Image  # noqa: E402

NO_LIMIT = 10**9
PREPARING = [0.0]


class Captioner(curator.LLM):  # type: ignore[misc]
    """A prompt with a picture."""

    def prompt(self, input: dict[str, Any]) -> tuple[Any, ...]:
        """The words, and the picture as base64: left to itself, curator sends PNG files."""
        before = time.thread_time()
        image = Image.open(input["file"]).convert("RGB")
        image.thumbnail((OPTIONS.max_side, OPTIONS.max_side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=85)
        picture = base64.b64encode(stream.getvalue()).decode()
        PREPARING[0] += time.thread_time() - before
        return "Describe this image.", curator.types.Image(content=picture, mime_type="image/jpeg")

    def parse(self, input: dict[str, Any], response: str) -> dict[str, Any]:
        """The caption beside the file."""
        return {"file": input["file"], "caption": response}


def main() -> None:
    """Measure and print."""
    photos = itertools.cycle(sorted((OPTIONS.folder / "photos").iterdir()))
    files = [{"number": number, "file": str(next(photos))} for number in range(OPTIONS.images)]
    captioner = Captioner(
        model_name=OPTIONS.model,
        backend="openai",
        generation_params={"max_completion_tokens": 300},
        backend_params={
            "base_url": OPTIONS.url,
            "api_key": "none",
            "max_requests_per_minute": NO_LIMIT,
            "max_tokens_per_minute": NO_LIMIT,
            "max_concurrent_requests": OPTIONS.in_flight,
        },
    )
    started, before = time.perf_counter(), time.process_time()
    rows = captioner(files).dataset
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    assert len(rows) == len(files)
    assert all(rows["caption"])
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    result = {
        "version": version("bespokelabs-curator"),
        "images_per_s": round(len(files) / seconds, 1),
        "prepare_ms": round(1000 * PREPARING[0] / len(files), 2),
        "client_ms": round(1000 * (cpu - PREPARING[0]) / len(files), 2),
        "peak_mib": int(peak[1]) // 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
