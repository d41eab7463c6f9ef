"""Captions come to their images as through a dictionary, whatever their order and their keys."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest

from lens_core.errors import StorageError
from lens_train.data.joined import Joined


def joined(keys, captions, folder):
    return Joined(np.array(keys, "S32"), captions, folder)


@pytest.mark.parametrize(("images", "captions"), [(1000, 5000), (1, 3), (3, 20_000)])
def test_as_a_dictionary_does_it(tmp_path, images, captions):
    lots = random.Random(images)
    # Zeros at the ends are where bytes of numpy are not like others.
    keys = [b"\1" + bytes(31), bytes(31) + b"\1", *(lots.randbytes(32) for _ in range(images))]
    lots.shuffle(keys)
    strangers = [lots.randbytes(32).hex() for _ in range(50)] + ["", "no hex", keys[0].hex() + "00", keys[0].hex()[:62]]
    told = [
        (lots.choice([*(key.hex() for key in keys), *strangers]), "é" * lots.randint(0, 3) + str(number))
        for number in range(captions)
    ]
    by_key = {key.hex(): [] for key in keys}
    for key, text in told:
        if key in by_key:
            by_key[key].append(text)
    found = joined(keys, iter(told), tmp_path)
    assert found.captions == captions
    assert found.counts_N.tolist() == [len(texts) for texts in by_key.values()]
    assert [found.texts(number) for number in range(len(keys))] == list(by_key.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keys", [[], [b"k" * 32]])
@pytest.mark.parametrize("captions", [[], [("ab" * 32, "a caption")]])
def test_nothing_to_bring_together(tmp_path, keys, captions):
    found = joined(keys, captions, tmp_path)
    assert found.captions == len(captions)
    assert found.counts_N.tolist() == [0] * len(keys)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/inside cannot be written: Not a directory$"):
        joined([b"k" * 32], [], tmp_path / "file" / "inside")


def test_a_full_disk(tmp_path):
    """The texts are larger than any file may be: told as such, and nothing is left."""
    code = f"""
import resource, signal
import numpy as np
from pathlib import Path
from lens_train.data.joined import Joined
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
key = bytes(range(32))
Joined(np.array([key], "S32"), ((key.hex(), "a" * 1000) for _ in range(1000)), Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith(f"StorageError: {tmp_path} cannot be written: File too large\n")
    assert list(tmp_path.iterdir()) == []
