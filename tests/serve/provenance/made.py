"""Pictures of a tiny model with their receipts, as `lens serve` makes them."""

from __future__ import annotations

import hashlib
import json
import time
from types import SimpleNamespace

import torch

from lens_core.diffusion import Request
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.text_to_image import draw, generate
from lens_core.diffusion.weights.lora import load_lora
from lens_core.storage.artifacts import FileEntry, load_artifact, manifest_hash
from lens_serve.config import ServeSettings
from lens_serve.engine.events import Picture
from lens_serve.engine.loaded import device_name
from lens_serve.engine.messages import Draw, ModelInfo
from lens_serve.provenance.receipt import receipt
from lens_serve.rewriting import Rewritten
from serve.models import tiny_model


def model_artifact(folder, **options):
    """A tiny model in a folder with a manifest; returns its path as text."""
    tiny_model(folder, **options)
    files = [
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    manifest = {
        "format_version": 1,
        "type": "model",
        "name": "model",
        "hash": manifest_hash("model", files, "", []),
        "files": [vars(entry) for entry in files],
        "parents": [],
        "config": {},
        "stats": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def made(
    folder,
    *,
    prompt="a cat",
    typed=None,
    negative="",
    tier="exact",
    lora=None,
    settings=None,
    height=16,
    width=24,
    seed=7,
    start=None,
    **features,
):
    """Draw a picture as `lens generate` would; returns it and its receipt."""
    loaded = load_model_folder(folder)
    if lora is not None:
        load_lora(loaded.transformer, lora[0], scale=lora[1])
    request = Request(prompt=prompt, negative=negative, height=height, width=width, seed=seed, index=1)
    sampler = loaded.sampler.model_copy(update={"steps": 2})
    (tokens_NC,) = draw(loaded, [request], sampler=sampler, guidance=2.0, latents=True)
    (image_HW3,) = generate(loaded, [request], sampler=sampler, guidance=2.0)
    picture = Picture(
        image_HW3=image_HW3,
        latent_sha256=hashlib.sha256(tokens_NC.numpy().astype("<f4").tobytes()).hexdigest(),
        pixel_sha256=hashlib.sha256(image_HW3.tobytes()).hexdigest(),
        seconds={},
        features={"device": device_name(torch.device("cpu")), "dtype": "float32", "kernels": "sdpa", **features},
    )
    info = ModelInfo(
        name="lens",
        hash=load_artifact(folder).hash,
        height=16,
        width=16,
        stride=4,
        steps=3,
        guidance=3.0,
        dtype="float32",
        sampler=loaded.sampler.model_dump(mode="json"),
    )
    job = Draw(
        id="0",
        model="lens",
        prompt=prompt,
        negative=negative,
        height=height,
        width=width,
        seed=seed,
        index=1,
        steps=2,
        guidance=2.0,
        tier=tier,
        lora=None if lora is None else lora[0].name,
        lora_scale=1.0 if lora is None else lora[1],
        arrived=time.monotonic(),
        start=start,
    )
    rewritten = Rewritten(text=prompt, outcome="off" if typed is None else "rewritten", by=typed and "a rewriter")
    settings = settings or ServeSettings(models=[{"name": "lens", "folder": folder}])
    order = SimpleNamespace(prompt=prompt if typed is None else typed)
    return image_HW3, receipt(order, job, picture, rewritten, info, settings)
