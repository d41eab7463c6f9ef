"""The manifest: what is written is read, damage is told in a line, and a build that dies leaves nothing."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lens_core.errors import ArtifactError, StorageError
from lens_train.planning.layout import CAPTIONS, HEAD, RANKING, SAMPLES, TEXTS
from lens_train.planning.manifest import Manifest
from lens_train.planning.manifest_writer import ManifestWriter
from train.planning.conftest import key_of_number, mixed_rows, write_manifest

ROWS = st.lists(
    st.tuples(
        st.integers(1, 65535),
        st.integers(1, 65535),
        st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=20), st.integers(0, 10**6)), max_size=3),
    ),
    min_size=1,
    max_size=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=ROWS)
def test_round_trip(rows, tmp_path):
    folder = tmp_path / str(time.monotonic_ns())
    written = write_manifest(folder, rows)
    for manifest in (written, Manifest(folder)):
        assert len(manifest) == len(rows)
        assert manifest.shards == ["a.tar", "b.tar", "c.tar"]
        for number, (height, width, captions) in enumerate(rows):
            assert manifest.key(number) == key_of_number(number)
            assert (manifest.shard[number], manifest.offset[number]) == (number % 3, 512 * number)
            assert manifest.size[number] == 100 + number
            assert (manifest.height[number], manifest.width[number]) == (height, width)
            found = [(manifest.caption_text(row), manifest.caption_tokens[row]) for row in manifest.captions_of(number)]
            assert found == captions
    assert sorted(file.name for file in folder.iterdir()) == sorted([SAMPLES, CAPTIONS, TEXTS, RANKING, HEAD])


def test_large_numbers_survive(tmp_path):
    writer = ManifestWriter(tmp_path / "manifest")
    far = {"shard": 4_000_000_000, "offset": 2**60, "size": 4_000_000_000, "height": 65535, "width": 1}
    writer.add(key="00" * 31 + "ff", captions=[], **far)
    manifest = writer.close([])
    assert {name: getattr(manifest, name)[0] for name in far} == far
    assert manifest.key(0) == "00" * 31 + "ff"


def test_ranking_is_by_area_then_size_then_text(tmp_path):
    rows = [*mixed_rows(700, captions=2), (512, 512, []), (512, 512, [("", 5000)]), (512, 512, [("", 6000)])]
    manifest = write_manifest(tmp_path / "manifest", rows)

    def cost(number):
        height, width, captions = rows[number]
        mean = sum(tokens for _, tokens in captions) // max(1, len(captions))
        return (height * width, (height, width), min(mean // 8, 127), number)

    assert manifest.ranking.tolist() == sorted(range(len(rows)), key=cost)
    starts = [cost(number)[1] for number in manifest.ranking]
    assert [(*size, starts.count(size)) for size in dict.fromkeys(starts)] == manifest.sizes


def test_ranking_in_pieces_is_the_same(tmp_path, monkeypatch):
    rows = mixed_rows(1000, captions=2)
    whole = write_manifest(tmp_path / "whole", rows)
    monkeypatch.setattr("lens_train.planning.ranking.PIECE", 37)
    pieces = write_manifest(tmp_path / "pieces", rows)
    assert (whole.ranking == pieces.ranking).all()


def test_hash_is_of_the_content(tmp_path):
    rows = mixed_rows(20)
    hashes = [write_manifest(tmp_path / name, rows).hash for name in ("one", "two")]
    changed = [list(rows) for _ in range(3)]
    changed[0][3] = (rows[3][0], rows[3][1] + 16, rows[3][2])
    changed[1][3] = (*rows[3][:2], [("another text", rows[3][2][0][1])])
    changed[2][3] = (*rows[3][:2], [(rows[3][2][0][0], rows[3][2][0][1] + 1)])
    hashes += [write_manifest(tmp_path / f"changed {number}", row).hash for number, row in enumerate(changed)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_hash_is_not_of_the_place(tmp_path):
    rows = mixed_rows(20)
    with ManifestWriter(tmp_path / "elsewhere") as writer:
        for number, (height, width, captions) in enumerate(rows):
            place = {"shard": 0, "offset": 7 * number, "size": 5}
            writer.add(key=key_of_number(number), **place, height=height, width=width, captions=captions)
        elsewhere = writer.close(["latents.safetensors"])
    assert elsewhere.hash == write_manifest(tmp_path / "here", rows).hash


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(ArtifactError, match="there is nothing to train on"):
        ManifestWriter(tmp_path / "manifest").close(["a.tar"])
    assert not (tmp_path / "manifest").exists()


def test_a_folder_that_is_there_is_kept(tmp_path):
    write_manifest(tmp_path / "manifest", mixed_rows(3))
    with pytest.raises(ArtifactError, match="manifest is there already; remove it"):
        ManifestWriter(tmp_path / "manifest")
    assert len(Manifest(tmp_path / "manifest")) == 3


def test_too_many_sizes(tmp_path):
    rows = [(height, width, []) for height in range(1, 130) for width in range(1, 130)]
    with pytest.raises(ArtifactError, match="16,641 different sizes are more than the 16,384"):
        write_manifest(tmp_path / "manifest", rows)


@pytest.mark.parametrize("name", [SAMPLES, CAPTIONS, TEXTS, RANKING, HEAD])
def test_a_missing_file(tmp_path, name):
    folder = tmp_path / "manifest"
    write_manifest(folder, mixed_rows(5))
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=r"build (it|the manifest) again$") as raised:
        Manifest(folder)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [SAMPLES, CAPTIONS, TEXTS, RANKING])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_length(tmp_path, name, change):
    folder = tmp_path / "manifest"
    write_manifest(folder, mixed_rows(5))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:change] if change < 0 else data + b"x")
    with pytest.raises(ArtifactError) as raised:
        Manifest(folder)
    expected = f"{folder / name} has {len(data) + change:,} bytes instead of {len(data):,}; build the manifest again"
    assert str(raised.value) == expected


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"format_version": 1}'])
def test_a_damaged_head(tmp_path, text):
    folder = tmp_path / "manifest"
    write_manifest(folder, mixed_rows(5))
    (folder / HEAD).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged; build the manifest again$"):
        Manifest(folder)


def test_another_format(tmp_path):
    folder = tmp_path / "manifest"
    write_manifest(folder, mixed_rows(5))
    head = json.loads((folder / HEAD).read_text()) | {"format_version": 9}
    (folder / HEAD).write_text(json.dumps(head))
    with pytest.raises(ArtifactError, match="is of format 9, and this version of Lens reads 1"):
        Manifest(folder)


def test_a_disk_that_is_full(tmp_path):
    # The limit is the process's own: files may grow to 200 kB, and what is beyond fails as on a full disk.
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from lens_core.errors import StorageError\n"
        "from train.planning.conftest import mixed_rows, write_manifest\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    write_manifest(Path(sys.argv[1]), mixed_rows(30_000))\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    folder = tmp_path / "manifest"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd="tests")
    assert done.stdout == f"cannot write the manifest {folder}: File too large\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"cannot write the manifest .*: Not a directory"):
        ManifestWriter(tmp_path / "file" / "manifest")


def test_killed_at_random_moments(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from train.planning.conftest import mixed_rows, write_manifest\n"
        "rows = mixed_rows(20_000)\n"
        "print(flush=True)\n"
        "write_manifest(Path(sys.argv[1]), rows)\n"
    )
    lots, killed = random.Random(7), 0
    folder = tmp_path / "manifest"
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, cwd="tests")
        process.stdout.readline()
        time.sleep(lots.uniform(0, 0.2))
        process.kill()
        process.wait()
        process.stdout.close()
        if folder.exists():  # it was done before: whole, then
            assert len(Manifest(folder)) == 20_000
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        else:
            killed += (tmp_path / "manifest.partial").exists()
    assert killed >= 2
    rows = mixed_rows(20)
    assert write_manifest(folder, rows).hash == write_manifest(tmp_path / "undisturbed", rows).hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest", "undisturbed"]


def test_what_is_asked_for_is_read_and_no_more(tmp_path):
    manifest = write_manifest(tmp_path / "manifest", mixed_rows(10))
    for column in (manifest.samples, manifest.captions, manifest.ranking):
        assert not column.flags.writeable
        assert not column.flags.owndata
    assert np.shares_memory(manifest.height, manifest.samples)
