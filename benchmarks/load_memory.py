"""How much memory does loading a checkpoint take, over that of its weights?

Writes a sharded checkpoint of the released width with a few blocks of random weights, loads it in a new process, and
looks at that process's resident memory meanwhile: before, when everything is imported, and at its highest.

    python benchmarks/load_memory.py --layers 6 --out runs/benchmarks/load_memory.json

Six blocks are 2.1 GB. Prints the rise as a multiple of the checkpoint's size, beside that of a peer measured in the
same run: a model built, and then filled from safetensors' `load_file`, shard by shard. The files are removed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lens_core.diffusion import LensTransformer2DModel
from lens_core.diffusion.weights import load_weights, save_weights


def main() -> None:
    """Write, measure, print, remove."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=6, help="blocks")
    parser.add_argument("--heads", type=int, default=24, help="attention heads; 64 times as many is the width")
    parser.add_argument("--shards", type=int, default=3, help="about how many files")
    parser.add_argument("--stored", choices=["float32", "bfloat16"], default="float32", help="dtype in the files")
    parser.add_argument("--folder", type=Path, default=None, help="where there is room for it")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--load", choices=["lens", "load_file"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(measure(options.load, options.folder)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        config = {"num_layers": options.layers, "num_attention_heads": options.heads}
        write(folder, config, options.shards, getattr(torch, options.stored))
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        result: dict[str, Any] = {
            "benchmark": "load_memory",
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "stored": options.stored,
            "files": len(list(folder.glob("*.safetensors"))),
            "checkpoint_bytes": size,
        }
        for how in ("lens", "load_file"):
            command = [sys.executable, __file__, "--load", how, "--folder", str(folder)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result[how] = json.loads(told)
    for how in ("lens", "load_file"):
        rise, loaded = result[how]["rise_bytes"], result[how]["weight_bytes"]
        result[how] |= {"of_checkpoint": rise / size, "of_weights": rise / loaded}
        print(
            f"{how:>9}: memory rises by {rise / 1e9:.2f} GB, {rise / size:.3f}x the checkpoint "
            f"({rise / loaded:.3f}x the weights), in {result[how]['seconds']:.1f} s"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def write(folder: Path, config: dict[str, int], shards: int, dtype: torch.dtype) -> None:
    """A checkpoint of random weights, and beside it the config to load it with."""
    torch.manual_seed(0)
    model = LensTransformer2DModel(**config).to(dtype)
    size = sum(parameter.nbytes for parameter in model.parameters())
    save_weights(model, folder, max_shard_bytes=-(-size // shards))
    (folder / "config.json").write_text(json.dumps(config))


def measure(how: str, folder: Path) -> dict[str, float]:
    """Load as `how` says; resident bytes over the level after imports, at the highest."""
    config = json.loads((folder / "config.json").read_text())
    torch.set_num_threads(1)
    before = resident()
    peak, stop = [before], threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    if how == "lens":
        with torch.device("meta"):
            model = LensTransformer2DModel(**config)
        load_weights(model, folder)
    else:
        model = LensTransformer2DModel(**config)
        for file in sorted(folder.glob("*.safetensors")):
            model.load_state_dict(load_file(file), strict=False)
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    loaded = sum(parameter.nbytes for parameter in model.parameters())
    return {"rise_bytes": max(peak[0], resident()) - before, "weight_bytes": loaded, "seconds": seconds}


def resident() -> int:
    """Resident bytes of this process, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


if __name__ == "__main__":
    main()
