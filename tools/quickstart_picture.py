"""Draw docs/assets/quickstart.png from a finished run of the quickstart: its gallery, a row a model.

python tools/quickstart_picture.py runs/quickstart
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lens_core.storage.artifacts import load_artifact
from lens_core.storage.urls import join

TARGET = Path(__file__).resolve().parents[1] / "docs" / "assets" / "quickstart.png"
ROWS = {"gallery-brief": "brief\ncaptions", "gallery-dense": "dense\ncaptions"}
SIDE, GAP, LEFT, BELOW = 160, 12, 110, 64


def main(run: str) -> None:
    """Put the galleries under each other, with the prompts below."""
    galleries = {name: load_artifact(join(run, name)) for name in ROWS}
    entries = {name: gallery.read_json("samples.json")["samples"] for name, gallery in galleries.items()}
    prompts = [entry["prompt"] for entry in entries["gallery-brief"]]
    width = LEFT + len(prompts) * (SIDE + GAP)
    sheet = Image.new("RGB", (width, len(ROWS) * (SIDE + GAP) + BELOW), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for row, (name, label) in enumerate(ROWS.items()):
        top = GAP + row * (SIDE + GAP)
        draw.text((GAP, top + SIDE / 2), label, "black", font, anchor="lm", spacing=4)
        for column, entry in enumerate(entries[name]):
            picture = Image.open(io.BytesIO(galleries[name].read_bytes(entry["path"])))
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (LEFT + column * (SIDE + GAP), top))
    for column, prompt in enumerate(prompts):
        left = LEFT + column * (SIDE + GAP)
        draw.text((left, len(ROWS) * (SIDE + GAP) + GAP), wrapped(prompt, draw, font), "black", font, spacing=3)
    sheet.save(TARGET, optimize=True)
    print(f"wrote {TARGET.relative_to(TARGET.parents[2])}")


def wrapped(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont) -> str:
    """Lines no wider than a picture."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= SIDE:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1])
