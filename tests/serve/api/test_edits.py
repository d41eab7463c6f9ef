"""`POST /v1/images/edits`: what starts from a picture, and what is not pretended."""

from __future__ import annotations

import base64
import json
import socket

import numpy as np
import openai
import pytest

from lens_serve.server import UPLOADS_OF_A_KEY
from serve.api.wire import error_of, events_of, file_of, pixels
from serve.images.certificates import signing_files
from serve.live import live_server, settings_for, wait_until

PICTURE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
ALPHA = np.full((16, 24), 255, np.uint8)
ALPHA[:, 12:] = 0
MASK = np.dstack([np.zeros((16, 24, 3), np.uint8), ALPHA])


@pytest.fixture(scope="module")
def client(live):
    with live.http() as client:
        yield client


def edit(client, *, picture=PICTURE, mask=None, format="PNG", lens=None, **data):
    files = {"image": ("picture.png", file_of(picture, format))}
    if mask is not None:
        files["mask"] = ("mask.png", file_of(mask))
    if lens is not None:
        data["lens"] = json.dumps(lens)
    return client.post("/v1/images/edits", data={"prompt": "a red fox", **data}, files=files)


def changed(answer, picture=PICTURE):
    """How far pixels are from those that were sent [H, W]."""
    assert answer.status_code == 200, answer.text
    shown = pixels(answer.json()["data"][0]["b64_json"])
    assert shown.shape == picture.shape
    return np.abs(shown.astype(int) - picture.astype(int)).max(axis=-1)


def test_instructions_are_not_pretended_to_be_followed(client):
    for lens in (None, {}, {"strength": 0.5}):
        error = error_of(edit(client, lens=lens), 404)
        assert error["code"] == "model_not_supported"
        assert "img2img" in error["message"]


def test_openais_client_is_told_so(live):
    with live.openai(max_retries=0) as client, pytest.raises(openai.NotFoundError) as caught:
        client.images.edit(image=file_of(PICTURE), prompt="make it red")
    assert caught.value.code == "model_not_supported"


def test_openais_client(live):
    with live.openai(max_retries=0) as client:
        answer = client.images.edit(
            image=file_of(PICTURE),
            mask=file_of(MASK),
            prompt="a red fox",
            n=2,
            output_format="webp",
            extra_body={"lens": json.dumps({"mode": "inpaint", "steps": 2})},
        )
        assert [pixels(image.b64_json).shape for image in answer.data] == [(16, 24, 3)] * 2
        assert answer.usage.input_tokens_details.image_tokens == 2 * 24
        stream = client.images.edit(
            image=file_of(PICTURE),
            prompt="a red fox",
            stream=True,
            partial_images=1,
            extra_body={"lens": json.dumps({"mode": "img2img", "steps": 8, "strength": 1})},
        )
        types = [event.type for event in stream]
    assert types[-1] == "image_edit.completed"
    assert set(types[:-1]) <= {"image_edit.partial_image"}


def test_strength_says_how_far(client):
    def distance(strength):
        lens = {"mode": "img2img", "strength": strength, "steps": 8, "seed": 1, "guidance": 1}
        return changed(edit(client, lens=lens)).mean()

    assert distance(0.125) < distance(1.0)


def test_only_what_the_mask_shows_as_transparent_is_redrawn(client):
    lens = {"mode": "inpaint", "strength": 1, "steps": 8, "seed": 1}
    change = changed(edit(client, mask=MASK, lens=lens))
    assert change[:, :12].max() <= 1
    assert change[:, 12:].mean() > 10


def test_the_receipt_tells_of_the_start(client):
    body = edit(client, lens={"mode": "img2img", "strength": 0.5}).json()
    assert body["lens"]["images"][0]["start"]["strength"] == 0.5


def test_sizes(client):
    odd = np.zeros((19, 30, 3), np.uint8)
    assert edit(client, picture=odd, lens={"mode": "img2img"}).json()["size"] == "28x16"
    assert edit(client, picture=odd, size="16x32", lens={"mode": "img2img"}).json()["size"] == "16x32"
    small = np.zeros((8, 8, 3), np.uint8)
    assert error_of(edit(client, picture=small, lens={"mode": "img2img"}), 400)["param"] == "size"
    large = np.zeros((400, 300, 3), np.uint8)
    assert error_of(edit(client, picture=large, lens={"mode": "img2img"}), 400)["param"] == "size"
    assert edit(client, picture=large, size="24x32", lens={"mode": "img2img"}).json()["size"] == "24x32"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_formats(client, format):
    assert edit(client, format=format, lens={"mode": "img2img"}).status_code == 200


def test_one_picture_at_a_time(client, live):
    for names in (("image", "image"), ("image", "image[]"), ("image[]", "image[]")):
        files = [(name, (f"{number}.png", file_of(PICTURE))) for number, name in enumerate(names)]
        error = error_of(client.post("/v1/images/edits", data={"prompt": "x"}, files=files), 400)
        assert (error["param"], error["message"]) == ("image", "One image can be started from, not several.")
    with live.openai(max_retries=0) as theirs, pytest.raises(openai.BadRequestError, match="not several"):
        theirs.images.edit(image=[file_of(PICTURE), file_of(PICTURE)], prompt="x")


def test_a_list_of_one_picture_is_a_picture(client, live):
    """OpenAI's clients, and the examples of its documentation, call it `image[]`."""
    lens = json.dumps({"mode": "img2img", "seed": 1, "tier": "exact"})
    with live.openai(max_retries=0) as theirs:
        answer = theirs.images.edit(image=[file_of(PICTURE)], prompt="a red fox", extra_body={"lens": lens})
    plain = edit(client, lens=json.loads(lens)).json()
    assert answer.data[0].b64_json == plain["data"][0]["b64_json"]
    error = error_of(client.post("/v1/images/edits", data={"prompt": "x", "image[]": "no file"}), 400)
    assert error["param"] == "image"


def test_masks_go_with_inpainting(client):
    assert error_of(edit(client, mask=MASK, lens={"mode": "img2img"}), 400)["param"] == "mask"
    assert error_of(edit(client, lens={"mode": "inpaint"}), 400)["param"] == "mask"
    opaque = np.zeros((16, 24, 3), np.uint8)
    assert error_of(edit(client, mask=opaque, lens={"mode": "inpaint"}), 400)["param"] == "mask"
    other = np.zeros((16, 16, 4), np.uint8)
    assert error_of(edit(client, mask=other, lens={"mode": "inpaint"}), 400)["param"] == "mask"


def test_large_uploads_are_refused(client):
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + b"x" * (20 << 20)
    answer = client.post("/v1/images/edits", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    error_of(answer, 413)


def test_so_many_uploads_may_be_on_their_way(client, live):
    lines = ("host: localhost", "content-type: multipart/form-data; boundary=b", "content-length: 1000")
    head = "\r\n".join(("POST /v1/images/edits HTTP/1.1", *lines, "", ""))
    uploads = [socket.create_connection(("127.0.0.1", live.port)) for _ in range(UPLOADS_OF_A_KEY)]
    try:
        for upload in uploads:
            upload.sendall(head.encode())
        wait_until(lambda: live.server.uploads.total() == UPLOADS_OF_A_KEY, "the uploads")
        refused = edit(client, lens={"mode": "img2img"})
        assert error_of(refused, 429)["code"] == "concurrency"
        assert refused.headers["retry-after"]
        assert client.post("/v1/images/generations", json={"prompt": "x"}).status_code == 200
    finally:
        for upload in uploads:
            upload.close()
    wait_until(lambda: not live.server.uploads.total(), "their end")
    assert edit(client, lens={"mode": "img2img"}).status_code == 200


def test_streams(client):
    lens = json.dumps({"mode": "img2img"})
    request = {"data": {"prompt": "x", "stream": "true", "lens": lens}, "files": {"image": ("i.png", file_of(PICTURE))}}
    with client.stream("POST", "/v1/images/edits", **request) as answer:
        assert answer.status_code == 200
        events = list(events_of(answer.iter_lines()))
    assert events[-1]["data"]["type"] == "image_edit.completed"


def test_previews_too_are_signed_as_drawn_on_a_picture(tiny_folder, tmp_path):
    chain, key = signing_files(tmp_path)
    output = {"c2pa_certificate": str(chain), "c2pa_key": str(key)}
    asked = {"prompt": "x", "stream": True, "partial_images": 1}
    form = {**asked, "lens": json.dumps({"mode": "img2img"})}
    with live_server(settings_for(tiny_folder, output=output)) as live, live.http() as client:
        files = {"image": ("picture.png", file_of(PICTURE))}
        edited = client.post("/v1/images/edits", data=form, files=files).text
        drawn = client.post("/v1/images/generations", json=asked).text
    for text, composite in ((edited, True), (drawn, False)):
        images = [
            base64.b64decode(event["data"]["b64_json"]) for event in events_of(text.split("\n")) if "data" in event
        ]
        assert len(images) == 2
        assert [b"/compositeWithTrainedAlgorithmicMedia" in image for image in images] == [composite] * 2
        assert [b"/trainedAlgorithmicMedia" in image for image in images] == [not composite] * 2
