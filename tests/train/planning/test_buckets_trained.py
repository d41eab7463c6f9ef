"""The plan of the paper, trained: packs of one size, and captions that nobody pads."""

from __future__ import annotations

import json
from pathlib import Path

from lens_core.pipeline.run_folder import STATE
from lens_core.storage import urls
from lens_train.loop.metrics import METRICS
from lens_train.planning.kept import kept_plan

STEPS = 3


def test_it_trains_packs_of_one_size_and_pads_nothing(run_stages, tmp_path):
    stages = [
        {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 12, "size": 128}},
        {"name": "dense", "type": "caption", "source": "images", "captioner": {"type": "scene-graph"}},
        {
            "name": "model",
            "type": "train",
            "source": "dense",
            "model": {"type": "lens", "preset": "nano", "num_layers": 1},
            "image_size": {"bases": {64: 1, 128: 1}},
            "batch": {"plan": "buckets", "buckets": {64: 3, 128: 2}},
            "objective": {"caption_dropout": 0},
            "budget": {"steps": STEPS},
            "watch": {"log_every": 1},
            "threads": 1,
        },
    ]
    model = run_stages(tmp_path, stages)["model"]
    plan = kept_plan(tmp_path / "run" / STATE / "model.plan").plan
    packs = [plan.pack(index) for index in range(STEPS)]
    sizes = [{(sample.height, sample.width) for sample in pack.samples} for pack in packs]
    assert [len(of_pack) for of_pack in sizes] == [1] * STEPS
    assert len(set.union(*sizes)) == 2
    assert all(len({sample.text_tokens for sample in pack.samples}) > 1 for pack in packs)
    told = {"images": sum(len(pack.samples) for pack in packs), "padding_tokens": 0}
    told |= {name: sum(getattr(pack, name) for pack in packs) for name in ("image_tokens", "text_tokens")}
    assert {name: model.stats[name] for name in told} == told
    lines = Path(urls.local_path(model.url), METRICS).read_text().splitlines()
    assert all(json.loads(line)["loss"] > 0 for line in lines)
    assert len(lines) == STEPS
