"""From a request to a verdict: what a real server drew, alone and in company, is what its receipt says."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import pytest

from lens_core.storage.lineage import read_receipt
from lens_serve.provenance.verify import verify_file
from serve.live import live_server, settings_for
from serve.models import half_model


@pytest.fixture(scope="module")
def drawn(live, tmp_path_factory):
    """Files of the exact tier that were drawn at once, by format."""
    folder = tmp_path_factory.mktemp("drawn")

    def draw(format):
        body = {"prompt": f"a {format} of a cat", "n": 2, "size": "24x16", "output_format": format}
        with live.http() as http:
            answer = http.post("/v1/images/generations", json={**body, "lens": {"tier": "exact"}})
        assert answer.status_code == 200, answer.text
        files = []
        for number, image in enumerate(answer.json()["data"]):
            files.append(folder / f"{number}.{format}")
            files[-1].write_bytes(base64.b64decode(image["b64_json"]))
        return files

    with ThreadPoolExecutor(3) as threads:
        return dict(zip(("png", "jpeg", "webp"), threads.map(draw, ("png", "jpeg", "webp")), strict=True))


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_exact_pictures_of_a_busy_server_are_identical(drawn, tiny_folder, format):
    for file in drawn[format]:
        lines = list(verify_file(str(file), model=str(tiny_folder), device="cpu"))
        assert lines[-1] == "verdict: identical, bit for bit", lines


@pytest.mark.parametrize(("asked", "denoiser"), [(None, "bfloat16"), ("float32", "float32")])
def test_parts_are_in_the_dtype_that_was_asked_for_or_stored(tmp_path, asked, denoiser):
    folder = half_model(tmp_path / "model")
    settings = settings_for(folder, models=[{"name": "tiny", "folder": str(folder), "dtype": asked}])
    body = {"prompt": "a red circle", "size": "32x32", "lens": {"tier": "exact"}}
    with live_server(settings) as live, live.http() as http:
        answer = http.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    said = read_receipt(data)
    assert (said["asked_dtype"], said["dtype"]) == (asked, denoiser)
    (tmp_path / "a.png").write_bytes(data)
    lines = list(verify_file(str(tmp_path / "a.png"), model=str(folder), device="cpu"))
    assert lines[-1] == "verdict: identical, bit for bit", lines
