"""Large caption layers pass through: a hundred thousand rows take hardly more memory than five thousand."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, io, re, sys
from pathlib import Path

from caption.outputs import World
from lens_caption.quality.diff import diff_layers
from lens_caption.layers import caption_rows
from lens_caption.stages.check_captions.config import CheckCaptionsConfig
from lens_caption.stages.check_captions.stage import run
from lens_core.pipeline.context import StageContext
from lens_core.pipeline.progress import Progress
from lens_core.storage.artifacts import OutputFolder
from lens_core.storage.captions import CaptionRow, write_captions
from lens_core.storage.shards import INDEX, _SCHEMA
import pyarrow as pa, pyarrow.parquet as pq

what, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
keys = lambda: (hashlib.sha256(str(number).encode()).hexdigest() for number in range(count))


def rows(layer, step):
    for number, key in enumerate(keys()):
        said = "Its wall is plain and white, and light falls on it from the left side. " if number % 7 == 0 else ""
        words = " ".join(f"{(number * step + place) % 9973}" for place in range(9))
        text = f"Picture {number} shows {words}. {said}In room {number} of the {layer} house."
        yield CaptionRow(key=key, layer=layer, text=text, provenance={"served_model": "m", "input_tokens": 9})


def index(output):
    file = output.local_dir("index") / INDEX
    with pq.ParquetWriter(file, _SCHEMA) as writer:
        batch = []
        for number, key in enumerate(keys()):
            batch.append({"key": key, "name": f"{number}.png", "shard": "shard-00000.tar", "offset": 512, "size": 9,
                "width": 8, "height": 8, "format": "png", "licence": "", "source_url": "", "metadata": "{}"})
            if len(batch) == 2048 or number == count - 1:
                writer.write_table(pa.Table.from_pylist(batch, schema=_SCHEMA))
                batch = []
    output.add_file(INDEX, file)


world = World(folder)
images = world.publish("images", "images", index)
world.keys = []
made = {layer: world.publish("captions", layer, lambda output: write_captions(output, rows(layer, step)), [images])
        for layer, step in (("old", 31), ("new", 37))[: 2 if what == "diff" else 1]}
if what == "diff":
    diff = diff_layers(caption_rows(made["old"]), caption_rows(made["new"]))
    assert diff.pairs == count and len(diff.samples) == 20
elif what == "check":
    skip = {"action": "skip"}
    gates = {name: skip for name in ("length", "refusal", "reasoning", "boilerplate", "loops", "language")}
    config = CheckCaptionsConfig(name="checked", source="old", gates=gates)
    output = OutputFolder(str(folder / "checked"), folder / "scratch")
    context = StageContext(name="checked", inputs=(made["old"],), output=output, state_dir=folder, run_url=str(folder),
        base=".", seed=0, registry=None, progress=Progress(stream=io.StringIO(), live=False))
    told = run(config, context)
    flagged = -(-count // 7)
    assert told["flagged_by"] == {"shared_sentence": flagged}, told
    assert sum(1 for _ in (folder / "checked" / "checks.jsonl").open()) == flagged
# Not getrusage: its peak is inherited from the process that forked this one.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def peak(what, folder, count):
    """Most memory, in MB, of a process that does it with so many images."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, what, folder, str(count)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": "tests", "OMP_NUM_THREADS": "1", "PATH": ""},
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("what", ["write", "diff", "check"])
@pytest.mark.parametrize(
    ("count", "megabytes"), [(100_000, 40), pytest.param(1_000_000, 80, marks=pytest.mark.soak, id="soak")]
)
def test_memory_is_flat(tmp_path, what, count, megabytes):
    few = peak(what, tmp_path / "few", 5_000)
    assert peak(what, tmp_path / "many", count) - few < megabytes
