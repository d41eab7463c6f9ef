"""Real image sets and caption layers for the tests of export, report and review."""

from __future__ import annotations

import io
import json

from PIL import Image

from lens_core.config.base import config_hash
from lens_core.storage.artifacts import MANIFEST, OutputFolder, load_artifact, manifest_hash
from lens_core.storage.captions import CaptionRow, write_captions
from lens_core.storage.shards import ImageRow, ShardWriter, image_key

HOSTILE = [
    "<script>document.title='pwned'</script>",
    "</title></style></textarea></script><script>document.title='pwned'</script>",
    '"><img src=x onerror="document.title=\'pwned\'">',
    "' onmouseover='document.title=1' x='",
    "javascript:document.title='pwned'",
    "<a href=\"javascript:document.title='pwned'\">here</a>",
    "<meta http-equiv=refresh content='0;url=http://example.invalid/'>",
    "<svg onload=document.title='pwned'><style>*{display:none}</style>",
    "<iframe srcdoc=\"<script>parent.document.title='pwned'</script>\"></iframe>",
    "<link rel=stylesheet href=http://example.invalid/x.css><img src=http://example.invalid/x.png>",
    "<!-- <base href=//example.invalid> -->",
    "&lt;script&gt;document.title='pwned'&lt;/script&gt;",
    "{{7*7}}{% for x in y %}{# gone #}${7*7}",
    "\u202egnp.exe\u202c \u2066\u202e",
    "line\u2028separator \x0b and\nnewline, \ttab, nul-like \x01",
    "a plain caption, with ümlauts and 漢字",
]


def picture(number, size=(64, 48), kind="PNG"):
    """A picture of its own for every number."""
    image = Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number // 256 % 256))
    image.putpixel((0, 0), (number % 256, number // 256 % 256, number // 65536))
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


class World:
    """Writes artefacts into a folder, as the runner would."""

    def __init__(self, folder):
        self.folder = folder

    def images(self, rows, *, name="images", shard_bytes=256 << 20):
        """Rows are mappings with `data` and `name`, and what else an `ImageRow` has."""

        def fill(output):
            with ShardWriter(output, max_bytes=shard_bytes) as writer:
                for row in rows:
                    facts = {"width": 64, "height": 48, "format": "png", **row}
                    writer.add(ImageRow(key=image_key(row["data"]), **facts))

        self.stored = self.publish("images", name, fill, stats={"images": len(rows)})
        self.keys = [image_key(row["data"]) for row in rows]
        return self.stored

    def captions(self, name, texts, *, layer=None, images=None, order=None, provenance=None):
        """A text per image, or a mapping with the fields of a row, or None for no row."""
        rows = []
        for number, (key, text) in enumerate(zip(self.keys, texts, strict=False)):
            if text is None:
                continue
            facts = text if isinstance(text, dict) else {"text": text}
            facts = {"provenance": (provenance or (lambda _: {"captioner": "scene-graph"}))(number), **facts}
            rows.append(CaptionRow(**{"key": key, "layer": layer or name, **facts}))
        rows = [rows[number] for number in order] if order else rows
        config = {"layer": layer} if layer else {}
        return self.publish(
            "captions", name, lambda output: write_captions(output, rows), [images or self.stored], config=config
        )

    def publish(self, type_, name, fill, parents=(), config=None, stats=None):
        output = OutputFolder(str(self.folder / name), self.folder / "scratch")
        fill(output)
        files = sorted(output.files.values(), key=lambda entry: entry.path)
        config = {"type": "made-by-a-test", "name": name, **(config or {})}
        output.write_json(
            MANIFEST,
            {
                "format_version": 1,
                "type": type_,
                "name": name,
                "hash": manifest_hash(type_, files, config_hash(config), [parent.hash for parent in parents]),
                "key": "0" * 64,
                "seconds": 1.5,
                "config": config,
                "parents": [
                    {"name": made.name, "type": made.type, "hash": made.hash, "url": f"../{made.name}"}
                    for made in parents
                ],
                "stats": stats or {},
                "files": [vars(entry) for entry in files],
            },
        )
        return load_artifact(output.url)


def rows_of(file):
    """Lines of a JSONL file."""
    return [json.loads(line) for line in file.read_text().splitlines()]
