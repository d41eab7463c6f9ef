"""The change-captions stage: earlier caption layers in, one arm of an experiment out, and how much it says.

Every lot depends on the seed and the image's key alone, so that an image's caption is the same whatever other images
there are, and in whatever order. Only a swap needs company: which images swap is drawn alike, and among these the
captions move on by one in an order drawn by lot, so that the layer as a whole says just what it said before.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import closing
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lens_caption.arms.changes import apply_changes, lot
from lens_caption.arms.measure import LayerMeasure
from lens_caption.arms.vocabulary import VOCABULARIES
from lens_caption.layers import LayerStore, index_batches, layer_names, sources
from lens_core.datasets.scenes.world import Scene
from lens_core.errors import ConfigError, LensError
from lens_core.storage.captions import CaptionRow, write_captions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_caption.layers import CaptionSource
    from lens_caption.stages.change_captions.config import ChangeCaptionsConfig
    from lens_core.pipeline.context import StageContext

__all__ = ["ARM", "run"]

ARM = "arm.json"
_MEASURED_SCENES = 1000
"""About so many captions are measured in bits, which takes milliseconds each; drawn by their keys."""


def run(config: ChangeCaptionsConfig, context: StageContext) -> dict[str, Any]:
    """Write the changed layer.

    Raises:
        ConfigError: there is no such layer, or there are not as many layers as odds.
        LensError: not a single caption came out.
        Stopped: the user asked for it; the stage begins anew.
    """
    given = sources(context.inputs)
    folder = context.output.local_dir("change")
    with closing(LayerStore(folder / "captions.sqlite", given.captions, config.layers)) as store:
        arm = _Arm(config, context, given, store)
        write_captions(context.output, arm.rows())
    return arm.publish()


class _Arm:
    """The new rows, and what is counted while they pass by."""

    def __init__(self, config: ChangeCaptionsConfig, context: StageContext, given: CaptionSource, store: LayerStore):
        there = store.layers
        if config.odds is not None and len(config.odds) != len(there):
            raise ConfigError(f"{len(config.odds)} odds for {len(there)} layers ({', '.join(there)})", key="odds")
        self.config, self.context, self.store, self.images = config, context, store, given.images
        one = config.odds is not None or len(there) == 1
        self.names = (
            {"": config.layer or context.name}
            if one
            else {name: f"{config.layer}-{name}" if config.layer else name for name in there}
        )
        self.origin = {name: made.name for made in given.captions for name in layer_names(made)}
        self.measures = {name: LayerMeasure(VOCABULARIES[config.vocabulary]) for name in self.names.values()}
        self.did, self.drawn, self.statuses = Counter[str](), Counter[str](), Counter[str]()
        self.failures: list[str] = []

    def rows(self) -> Iterator[CaptionRow]:
        """A row of each image in each layer, in the order of the images."""
        total = sum(len(batch["key"]) for batch in index_batches(self.images, ["key"]))
        self.context.progress.start(total, "images")
        givers = self._givers() if self.config.swapped else {}
        done = 0
        for batch in index_batches(self.images, ["key", "name", "metadata"]):
            self.context.stop_if_asked()
            rows = self.store.rows(batch["key"])
            for key, name, metadata in zip(batch["key"], batch["name"], batch["metadata"], strict=True):
                measured = lot(self.config.seed, "measure", key).random() * total < _MEASURED_SCENES
                scene = _scene(metadata) if measured else None
                for layer, row in self._chosen(key, rows[key]):
                    giver = givers.get((layer, key))
                    other = row if giver is None else dict(self._chosen(giver, self.store.rows([giver])[giver]))[layer]
                    new = self._changed(key, layer, other)
                    self._count(new, name, scene)
                    yield new
            done += len(batch["key"])
            self.context.progress.update(done)

    def publish(self) -> dict[str, Any]:
        """The measures and the list of failures; returns the stage's numbers."""
        if not self.statuses["ok"]:
            reason = json.loads(self.failures[0])["detail"] if self.failures else "there is none"
            raise LensError(f"{self.context.name}: not one caption came out (the first: {reason})")
        layers = {name: measure.to_json() for name, measure in self.measures.items()}
        self.context.output.write_json(
            ARM, {"format_version": 1, "did": self.did, "drawn": self.drawn, "layers": layers}
        )
        self.context.output.write_text("failures.jsonl", "".join(self.failures))
        return {
            "captions": self.statuses["ok"],
            "failed": len(self.failures),
            "by_status": self.statuses,
            "did": self.did,
            "drawn": self.drawn,
            "layers": layers,
        }

    def _chosen(self, key: str, rows: dict[str, CaptionRow]) -> Iterator[tuple[str, CaptionRow]]:
        """Of one image, the rows that are changed, by the name of the new layer."""
        if self.config.odds is None:
            for layer, row in rows.items():
                yield self.names.get(layer) or self.names[""], row
            return
        upto = list(accumulate(self.config.odds))
        at = lot(self.config.seed, "odds", key).random() * upto[-1]
        layer = self.store.layers[next(number for number, end in enumerate(upto) if at < end)]
        if layer in rows:
            yield self.names[""], rows[layer]

    def _changed(self, key: str, layer: str, row: CaptionRow) -> CaptionRow:
        """The new row of image `key`, made of a row that is another image's where captions are swapped."""
        facts: dict[str, str | int | float] = {"made_from": f"{self.origin[row.layer]}/{row.layer}"}
        if row.status != "ok":
            facts |= {fact: said for fact, said in row.provenance.items() if fact == "review"}  # exports ask for it
            return CaptionRow(key=key, layer=layer, text="", status=row.status, detail=row.detail, provenance=facts)
        config = self.config
        text, did = apply_changes(row.text, config.changes, config.vocabulary, seed=config.seed, key=row.key)
        facts["made_from_sha256"] = hashlib.sha256(row.text.encode()).hexdigest()[:16]
        facts |= did
        self.did += did
        if row.key != key:
            facts["caption_of"] = row.key
            self.did["swapped"] += 1
        self.drawn[row.layer] += 1
        if not text.strip():
            detail = "nothing is left of the caption"
            return CaptionRow(key=key, layer=layer, text="", status="empty", detail=detail, provenance=facts)
        return CaptionRow(key=key, layer=layer, text=text, provenance=facts)

    def _count(self, row: CaptionRow, name: str, scene: Scene | None) -> None:
        self.statuses[row.status] += 1
        if row.status == "ok":
            self.measures[row.layer].add(row.text, scene)
        else:
            facts = {"key": row.key, "layer": row.layer, "status": row.status, "detail": row.detail}
            self.failures.append(json.dumps({"name": name, **facts}, ensure_ascii=False) + "\n")

    def _givers(self) -> dict[tuple[str, str], str]:
        """Of each layer and image that gets another's caption, that other image."""
        swapping: dict[str, list[tuple[float, str]]] = {}
        for batch in index_batches(self.images, ["key"]):
            for key, rows in self.store.rows(batch["key"]).items():
                rng = lot(self.config.seed, "swapped", key)
                if rng.random() < self.config.swapped:
                    place = rng.random()
                    for layer, row in self._chosen(key, rows):
                        if row.status == "ok":
                            swapping.setdefault(layer, []).append((place, key))
        givers: dict[tuple[str, str], str] = {}
        for layer, places in swapping.items():
            keys = [key for _, key in sorted(places)]
            givers |= {(layer, key): keys[number - 1] for number, key in enumerate(keys) if len(keys) > 1}
        return givers


def _scene(metadata: str) -> Scene | None:
    """The scene graph in an image's metadata, or None if it has none; others may call something else their scene."""
    try:
        return Scene.from_json(json.loads(metadata).get("scene"))
    except ValueError:
        return None
