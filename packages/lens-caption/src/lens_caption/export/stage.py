"""The export stage: images and captions in a format that other tools read, below `data/` in the artefact."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from lens_caption.export.rows import ExportRow, chosen_text, text_columns
from lens_caption.export.writers import WRITERS
from lens_caption.layers import LayerStore, StoredImages, sources
from lens_core.errors import LensError

if TYPE_CHECKING:
    from lens_caption.export.config import ExportStageConfig
    from lens_core.pipeline.context import StageContext

__all__ = ["run"]


def run(config: ExportStageConfig, context: StageContext) -> dict[str, Any]:
    """Write the images in the order of their shards.

    Raises:
        ConfigError: the sources hold no such layer, or are of different images.
        MissingExtraError: the format needs a library that is not installed.
        LensError: not a single image has a caption.
    """
    source = sources(context.inputs)
    scratch = context.output.local_dir("layers")
    options = {"metadata": config.metadata or "jsonl"} if config.format == "imagefolder" else {}
    store = LayerStore(scratch / "layers.sqlite", source.captions, config.layers)
    writer = WRITERS[config.format](context.output, store.layers, config.shard_megabytes << 20, **options)
    context.progress.start(source.images.stats.get("images"), "images")
    written = skipped = seen = 0
    by_layer: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    with StoredImages(source.images) as images:
        for batch in images.batches():
            captions = store.rows([row["key"] for row in batch])
            for row in batch:
                said = captions[row["key"]]
                text = chosen_text(said.values())
                if text is None and config.without_caption == "skip":
                    skipped += 1
                    continue
                image = images.read(row)
                writer.add(ExportRow(image=image, text=text, captions=said))
                written += 1
                by_layer.update(layer for layer, caption in said.items() if caption.status == "ok")
                licences[image.licence or "unknown"] += 1
            seen += len(batch)
            context.progress.update(seen, written=written)
            context.stop_if_asked()
    store.close()
    writer.close()
    if not written:
        raise LensError(
            f"{context.name}: none of {seen} images has a caption in the layers {', '.join(store.layers) or '(none)'}"
        )
    if skipped:
        context.progress.note(f"left out {skipped} images without a caption")
    return {
        "format": config.format,
        "images": written,
        "without_caption": skipped,
        "layers": store.layers,
        "columns": ["text", *text_columns(store.layers).values()],
        "captions_by_layer": by_layer,
        "licences": licences,
    }
