"""A folder of one's own photos, captioned by a server that speaks the OpenAI API, trained on, drawn from."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = str(ROOT / "examples" / "own-photos" / "pipeline.yaml")


def photo(size, mode="RGB", shade=0):
    from PIL import Image

    image = Image.linear_gradient("L").resize(size).convert("RGB")
    return Image.blend(image, Image.new("RGB", size, (shade * 37 % 256, shade * 91 % 256, 99)), 0.5).convert(mode)


@pytest.fixture
def photos(tmp_path):
    """Good and bad files as people have them."""
    from PIL import Image

    folder = tmp_path / "photos"
    (folder / "holiday").mkdir(parents=True)
    photo((641, 427), shade=1).save(folder / "odd.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo((500, 333), shade=2).save(folder / "holiday" / "rotated.jpeg", exif=exif)
    photo((444, 444), "CMYK", shade=3).save(folder / "cmyk.jpg")
    photo((450, 400), "RGBA", shade=4).save(folder / "alpha.png")
    import numpy as np

    deep = (np.linspace(0, 65535, 400 * 420).reshape(400, 420)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "sixteen.png")
    photo((512, 399), shade=5).save(folder / "modern.webp")
    whole = io.BytesIO()
    photo((600, 400), shade=6).save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.jpg").write_text("this is not a picture")
    photo((20, 20), shade=7).save(folder / "thumbnail.png")
    (folder / "notes.txt").write_text("ignored")
    return folder


def test_own_photos_from_folder_to_picture(lens, photos, tmp_path):
    from lens_caption.testing.openai_server import OpenAIServer

    with OpenAIServer() as server:
        sets = [f"run={tmp_path / 'run'}", f"images.source.url={photos}"]
        import yaml

        for stage in yaml.safe_load(Path(PIPELINE).read_text())["stages"]:
            name = stage["name"]
            if stage["type"] == "caption":
                sets += [f"{name}.captioner.base_url={server.url}", f"{name}.captioner.model=test-model"]
            if stage["type"] == "train":
                sets += [f"{name}.budget={{steps: 3}}", f"{name}.batch.samples=4", f"{name}.threads=1"]
            if stage["type"] == "sample":
                sets += [f"{name}.steps=2"]
        arguments = [part for text in sets for part in ("--set", text)]
        done = lens("run", PIPELINE, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(server.ledger) == 6
        again = lens("run", PIPELINE, *arguments)
        assert len(server.ledger) == 6
        assert "done already" in again.stderr
    drops = {}
    for line in (tmp_path / "run" / "images" / "drops.jsonl").read_text().splitlines():
        drop = json.loads(line)
        drops[drop["name"]] = drop["reason"]
    assert drops.keys() == {"truncated.jpg", "text.jpg", "thumbnail.png"}
    assert "truncated" in drops["truncated.jpg"]
    assert all(name in done.stderr for name in drops)
    assert list((tmp_path / "run").rglob("*.png"))
    assert (tmp_path / "run" / "report.html").exists()


def test_a_new_photo_is_noticed(lens, photos, tmp_path):
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        "run: run\nstages:\n  - {name: images, type: ingest, source: {type: image-folder, url: photos}}\n"
    )
    assert lens("run", str(pipeline)).returncode == 0
    assert "done already" in lens("run", str(pipeline)).stderr
    photo((700, 500), shade=9).save(photos / "new.jpg")
    assert "(again: its source changed)" in lens("run", str(pipeline)).stderr


@pytest.mark.parametrize(
    ("url", "words"), [("nowhere", "does not exist"), ("empty", "no image"), ("file.txt", "is not a folder")]
)
def test_bad_sources_are_one_line(lens, tmp_path, url, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        f"run: run\nstages:\n  - {{name: images, type: ingest, source: {{type: image-folder, url: {url}}}}}\n"
    )
    done = lens("run", str(pipeline))
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
