"""The law of imports, as a test: siblings never meet, doors are light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_import_contracts_hold():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


def test_no_pickle_and_no_unsafe_loading():
    guilty = []
    for file in (ROOT / "packages").rglob("*.py"):
        text = file.read_text()
        for word in ("import pickle", "torch.load(", "yaml.load(", "trust_remote_code=True", "allow_pickle=True"):
            if word in text:
                guilty.append(f"{file.name}: {word}")
    assert guilty == []
