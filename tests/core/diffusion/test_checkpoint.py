"""Weights in folders: what others write loads here, what is written here loads there, and damage has an address."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from core.diffusion.packs import TINY, random_lens
from lens_core.diffusion import LensTransformer2DModel
from lens_core.diffusion.weights import load_weights, save_weights
from lens_core.diffusion.weights.stored import SafetensorsFile
from lens_core.errors import ArtifactError, ConfigError, StorageError

NAME = "diffusion_pytorch_model"
FILE = f"{NAME}.safetensors"
INDEX = f"{FILE}.index.json"
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "load_memory.py"


class Mixed(nn.Module):
    """Parameters of odd shapes, buffers that are no floats, and one parameter that is frozen."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.inner = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
        self.inner[0].weight.requires_grad_(False)
        self.register_buffer("ids", torch.arange(7))
        self.register_buffer("flags", torch.tensor([True, False, True]))


def on_meta(make, *args, **kwargs):
    with torch.device("meta"):
        return make(*args, **kwargs)


def assert_same(module, other):
    first, second = module.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key
        assert first[key].dtype == second[key].dtype, key


def refused(module, folder, error=ArtifactError, **options):
    """The one line with which a folder is refused; the module is as it was."""
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(error) as caught:
        load_weights(module, folder, **options)
    message = str(caught.value)
    assert message.splitlines() == [message]
    for key, tensor in module.state_dict().items():
        assert tensor.is_meta or torch.equal(tensor, before[key])
    return message


@pytest.fixture(scope="module")
def model():
    return random_lens(dtype=torch.float32)


@pytest.fixture
def sharded(model, tmp_path):
    """A folder of several shards that a test may damage."""
    save_weights(model, tmp_path / "sharded", max_shard_bytes=100_000)
    return tmp_path / "sharded"


def edit_index(folder, edit):
    index = json.loads((folder / INDEX).read_text())
    edit(index)
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000, 1])
@pytest.mark.parametrize("meta", [True, False])
def test_round_trip(model, tmp_path, max_shard_bytes, meta):
    save_weights(model, tmp_path, max_shard_bytes=max_shard_bytes)
    other = on_meta(LensTransformer2DModel, **TINY) if meta else random_lens(seed=1, dtype=torch.float32)
    load_weights(other, tmp_path)
    assert_same(other, model)
    assert all(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize("meta", [True, False])
def test_buffers_scalars_and_frozen_parameters(tmp_path, meta):
    module = Mixed()
    module.inner[1].num_batches_tracked += 3
    save_weights(module, tmp_path)
    other = on_meta(Mixed) if meta else Mixed()
    parameters = dict(other.named_parameters())
    load_weights(other, tmp_path)
    assert_same(other, module)
    assert [name for name, parameter in other.named_parameters() if not parameter.requires_grad] == ["inner.0.weight"]
    assert meta or all(parameters[name] is parameter for name, parameter in other.named_parameters())


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, None])
def test_dtypes(tmp_path, meta, stored, wanted):
    module = Mixed().to(stored)
    save_weights(module, tmp_path)
    other = on_meta(Mixed) if meta else Mixed()
    load_weights(other, tmp_path, dtype=wanted)
    for key, tensor in other.state_dict().items():
        there = module.state_dict()[key]
        expected = there.to(wanted) if wanted and there.is_floating_point() else there
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)


def test_a_tensor_of_many_pieces(tmp_path):
    """Larger than what is read at once, and no multiple of it."""
    module = nn.Linear(1500, 1501)
    save_weights(module.half(), tmp_path)
    other = on_meta(nn.Linear, 1500, 1501)
    load_weights(other, tmp_path)
    assert_same(other, module.float())


def test_a_transposed_parameter(tmp_path):
    module = nn.Linear(3, 5)
    save_weights(module, tmp_path)
    other = nn.Linear(3, 5)
    other.weight.data = other.weight.data.t().contiguous().t()
    load_weights(other, tmp_path)
    assert_same(other, module)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
def test_reads_what_the_hub_library_writes(model, tmp_path, max_shard_bytes):
    save_torch_state_dict(
        model.state_dict(), tmp_path, filename_pattern=NAME + "{suffix}.safetensors", max_shard_size=max_shard_bytes
    )
    other = on_meta(LensTransformer2DModel, **TINY)
    load_weights(other, tmp_path)
    assert_same(other, model)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_to_and_from_diffusers(tmp_path, max_shard_bytes):
    """A module of diffusers: its folder loads here, and a folder from here loads there."""
    from diffusers import AutoencoderKL

    config = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 2}
    torch.manual_seed(0)
    theirs = AutoencoderKL(**config)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_bytes)
    assert (tmp_path / "theirs" / INDEX).exists() == (max_shard_bytes < 10**9)
    ours = AutoencoderKL(**config)
    load_weights(ours, tmp_path / "theirs")
    assert_same(ours, theirs)

    save_weights(theirs, tmp_path / "ours", max_shard_bytes=max_shard_bytes)
    theirs.save_config(tmp_path / "ours")
    again = AutoencoderKL.from_pretrained(tmp_path / "ours", use_safetensors=True, local_files_only=True)
    assert_same(again, theirs)
    names = [sorted(file.name for file in (tmp_path / who).iterdir()) for who in ("ours", "theirs")]
    assert names[0] == names[1]


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_to_and_from_transformers(tmp_path, max_shard_bytes):
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    theirs = Qwen3Model(
        Qwen3Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )
    )
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_bytes)
    ours = Qwen3Model(theirs.config)
    load_weights(ours, tmp_path / "theirs", "model")
    assert_same(ours, theirs)

    save_weights(theirs, tmp_path / "ours", "model", max_shard_bytes=max_shard_bytes)
    theirs.config.save_pretrained(tmp_path / "ours")
    again = Qwen3Model.from_pretrained(tmp_path / "ours", use_safetensors=True, local_files_only=True)
    assert_same(again, theirs)


def test_shards_and_index_are_those_of_the_field(model, sharded):
    index = json.loads((sharded / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert index["weight_map"].keys() == model.state_dict().keys()
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"{NAME}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    assert sorted(file.name for file in sharded.iterdir()) == sorted([*shards, INDEX])
    for shard in shards:
        tensors = load_file(sharded / shard)
        assert {key for key, name in index["weight_map"].items() if name == shard} == tensors.keys()
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 100_000
        with safe_open(sharded / shard, "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_a_save_removes_what_an_earlier_one_left(model, tmp_path):
    other = random_lens(seed=1, dtype=torch.float32)
    (tmp_path / "config.json").write_text("{}")
    for max_shard_bytes in (10**9, 100_000, 200_000, 10**9):
        save_weights(other, tmp_path)
        save_weights(model, tmp_path, max_shard_bytes=max_shard_bytes)
        fresh = on_meta(LensTransformer2DModel, **TINY)
        load_weights(fresh, tmp_path)
        assert_same(fresh, model)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", FILE]


def test_a_folder_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write diffusion_pytorch_model.safetensors in .*file"):
        save_weights(model, tmp_path / "file")


def test_nothing_there(model, tmp_path):
    assert f"{tmp_path}/{FILE} cannot be read: No such file" in refused(model, tmp_path)
    (tmp_path / FILE).mkdir()
    assert f"{tmp_path}/{FILE} cannot be read" in refused(model, tmp_path)


@pytest.mark.parametrize("meta", [True, False])
def test_missing_unknown_and_wrong_tensors(model, tmp_path, meta):
    module = on_meta(LensTransformer2DModel, **TINY) if meta else model

    def told(edit):
        weights = model.state_dict()
        edit(weights)
        save_file(weights, tmp_path / FILE)
        return refused(module, tmp_path)

    fits = f"{tmp_path}/{FILE} does not fit its config:"
    assert told(lambda w: w.pop("img_in.weight")) == f"{fits} 'img_in.weight' is missing"
    two = told(lambda w: [w.pop(f"img_in.{name}") for name in ("weight", "bias")])
    assert two == f"{fits} 'img_in.bias' is missing (and 1 more)"
    assert told(lambda w: w.update(lora=torch.zeros(1))) == f"{fits} 'lora' is unknown"
    seven = told(lambda w: w.update({"img_in.bias": torch.zeros(7)}))
    assert seven == f"{fits} 'img_in.bias' has shape (7,), not (32,)"
    whole = torch.zeros(32, dtype=torch.int8)
    assert told(lambda w: w.update({"img_in.bias": whole})).startswith(f"{fits} 'img_in.bias' is stored as torch.int8")


def test_a_buffer_that_no_checkpoint_brings(tmp_path):
    save_weights(nn.Linear(2, 2), tmp_path)
    module = on_meta(nn.Linear, 2, 2)
    module.register_buffer("table", torch.zeros(3, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="'table'"):
        load_weights(module, tmp_path)


def test_every_truncation_is_told(model, tmp_path):
    save_weights(model, tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    tensors = SafetensorsFile(tmp_path / FILE).tensors
    header = next(iter(tensors.values())).begin
    for kept in (0, 5, 8, 100, header - 1, header, header + 1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:kept])
        message = refused(model, tmp_path)
        assert message.startswith(f"{tmp_path}/{FILE} is damaged or truncated: it ends at byte {kept:,}")
        if kept < header:
            assert "inside its header" in message
        else:
            inside = next(name for name, stored in tensors.items() if kept < stored.end)
            assert message.endswith(f"it ends at byte {kept:,} of {len(whole):,}, inside {inside!r}")
            assert tensors[inside].begin <= kept
    (tmp_path / FILE).write_bytes(whole + b"more")
    assert "goes on for 4 bytes after its last tensor" in refused(model, tmp_path)


def test_a_file_that_shrinks_while_it_is_read(model, tmp_path):
    save_weights(model, tmp_path)
    file = SafetensorsFile(tmp_path / FILE)
    last = list(file.tensors)[-1]
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-2])
    with pytest.raises(ArtifactError, match=f"it ends at byte .*, inside '{last}'"):
        file.read(last)


def with_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "its header is no JSON"),
        (b"\xff\xfe{}", "its header is no JSON"),
        (b"[" * 100_000, "its header is no JSON"),
        (b'{"a": 1, "a": 2}', "a name appears twice"),
        (b"[]", "its header is no JSON object"),
        ({"__metadata__": {"a": 1}}, "its metadata are not texts"),
        ({"__metadata__": ["a"]}, "its metadata are not texts"),
        ({"a": 3}, "says too little of 'a'"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "says too little of 'a'"),
        ({"a": ENTRY | {"data_offsets": [0]}}, "says too little of 'a'"),
        ({"a": ENTRY | {"data_offsets": ["0", "8"]}}, "says what cannot be of 'a'"),
        ({"a": ENTRY | {"shape": [-2]}}, "says what cannot be of 'a'"),
        ({"a": ENTRY | {"shape": [2.0]}}, "says what cannot be of 'a'"),
        ({"a": ENTRY | {"shape": [True, 2]}}, "says what cannot be of 'a'"),
        ({"a": ENTRY | {"shape": [0, 2**70]}}, "says what cannot be of 'a'"),
        ({"a": ENTRY | {"dtype": 32}}, "says what cannot be of 'a'"),
        ({"a": ENTRY | {"shape": [3]}}, "'a' is F32 [3], which does not take 8 bytes"),
        ({"a": ENTRY, "b": ENTRY}, "'b' does not start at byte"),
        ({"a": ENTRY | {"data_offsets": [8, 16]}}, "'a' does not start at byte"),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, "does not take -8 bytes"),
    ],
)
def test_damaged_headers(tmp_path, header, words):
    with_header(tmp_path / FILE, header, bytes(16))
    message = refused(nn.Linear(2, 2), tmp_path)
    assert message.startswith(f"{tmp_path}/{FILE} is damaged or truncated: ")
    assert words in message


def test_dtypes_from_another_world(tmp_path):
    with_header(tmp_path / FILE, {"a": ENTRY | {"dtype": "F4"}}, bytes(8))
    assert "'a' is stored as F4, which this Lens does not read" in refused(nn.Linear(2, 2), tmp_path)


def test_headers_of_our_own_are_those_of_the_library(model, tmp_path):
    """Names, dtypes, shapes, order and values as safetensors itself reads them."""
    module = Mixed()
    for number, dtype in enumerate((torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int16)):
        module.register_buffer(f"extra{number}", torch.arange(number + 1).to(dtype))
    save_weights(module, tmp_path)
    ours = SafetensorsFile(tmp_path / FILE)
    with safe_open(tmp_path / FILE, "pt") as theirs:
        assert list(ours.tensors) == list(theirs.offset_keys())
        assert ours.metadata == theirs.metadata()
        for name in ours.tensors:
            mine, there = ours.read(name), theirs.get_tensor(name)
            assert (mine.dtype, mine.shape) == (there.dtype, there.shape)
            assert torch.equal(mine.reshape(-1).view(torch.uint8), there.reshape(-1).view(torch.uint8))


def test_random_damage_never_escapes(model, tmp_path):
    """Whatever byte of the header changes, the file loads or is refused in one line."""
    save_weights(nn.Linear(3, 2), tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for place in torch.randint(len(whole) - 32, (2,), generator=generator).tolist():
            damaged[place] = int(torch.randint(256, (), generator=generator))
        (tmp_path / FILE).write_bytes(damaged)
        try:
            load_weights(nn.Linear(3, 2), tmp_path)
        except ArtifactError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 (any other error fails the test)


@pytest.mark.parametrize(
    "content", [b"cos\nmkdir\n(V/x\ntR.", b"PK\x03\x04\x14\x00\x08\x08", b"\x80\x02}q\x00X\x01\x00"]
)
def test_pickles(model, tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    message = refused(model, tmp_path)
    assert "is damaged or truncated: it does not start like a safetensors file" in message
    assert ("looks like a pickle" in message) == (not content.startswith(b"cos"))


def test_a_shard_that_is_missing_or_truncated(model, sharded):
    shard = sharded / f"{NAME}-00002-of-00005.safetensors"
    whole = shard.read_bytes()
    last = list(SafetensorsFile(shard).tensors)[-1]
    shard.write_bytes(whole[:-10])
    words = f"it ends at byte {len(whole) - 10:,} of {len(whole):,}, inside {last!r}"
    assert refused(model, sharded) == f"{shard} is damaged or truncated: {words}"
    shard.unlink()
    assert f"{shard} cannot be read: No such file" in refused(model, sharded)


def test_shards_that_do_not_keep_what_the_index_promises(model, sharded):
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    shard = index["img_in.weight"]
    weights = load_file(sharded / shard)
    kept = weights.pop("img_in.weight")
    save_file(weights, sharded / shard)
    assert refused(model, sharded) == f"{sharded / shard} does not hold 'img_in.weight', which {INDEX} promises"
    save_file(weights | {"img_in.weight": kept, "lora": torch.zeros(1)}, sharded / shard)
    assert refused(model, sharded) == f"{sharded / shard} holds 'lora', which {INDEX} does not expect there"


def test_shards_that_do_not_fit(model, sharded):
    shard = json.loads((sharded / INDEX).read_text())["weight_map"]["img_in.bias"]
    weights = load_file(sharded / shard)
    save_file(weights | {"img_in.bias": torch.zeros(7)}, sharded / shard)
    words = "does not fit its config: 'img_in.bias' has shape (7,), not (32,)"
    assert refused(model, sharded) == f"{sharded / shard} {words}"
    del weights["img_in.bias"]
    save_file(weights, sharded / shard)
    edit_index(sharded, lambda index: index["weight_map"].pop("img_in.bias"))
    assert refused(model, sharded) == f"{sharded / INDEX} does not fit its config: 'img_in.bias' is missing"


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "..", "", "x.bin"]
)
def test_an_index_that_points_elsewhere(model, sharded, name):
    save_file(model.state_dict(), sharded.parent / "outside.safetensors")
    edit_index(sharded, lambda index: index["weight_map"].update({"img_in.bias": name}))
    assert refused(model, sharded) == f"{sharded / INDEX} names {name!r}, which is no .safetensors file beside it"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "has no 'weight_map'"),
        (b"{}", "has no 'weight_map'"),
        (b'{"weight_map": 3}', "has no 'weight_map'"),
        (b'{"weight_map": {"a": 3}}', "has no 'weight_map'"),
        (b'{"weight_map": {}}', "is missing"),
        (b" " * (64 * 2**20 + 1), "has more than 67,108,864 bytes"),
    ],
    ids=range(9),
)
def test_an_index_that_is_none(model, sharded, text, words):
    (sharded / INDEX).write_bytes(text)
    message = refused(model, sharded)
    assert message.startswith(str(sharded / INDEX))
    assert words in message


def test_loras_are_in_the_way(model, tmp_path):
    from lens_core.diffusion.weights import load_lora

    save_weights(model, tmp_path)
    carrying = random_lens(dtype=torch.float32)
    factors = {"img_in.lora_A.weight": torch.zeros(1, 16), "img_in.lora_B.weight": torch.zeros(32, 1)}
    load_lora(carrying, factors)
    assert "unload_loras" in refused(carrying, tmp_path, ConfigError)
    with pytest.raises(ConfigError, match="unload_loras"):
        save_weights(carrying, tmp_path)


def rise(tmp_path, *options):
    """How far memory rises while a checkpoint of several shards is loaded, over the checkpoint's size."""
    out = tmp_path / "memory.json"
    command = [sys.executable, str(BENCHMARK), "--folder", str(tmp_path), "--out", str(out), *options]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads(out.read_text())
    assert result["files"] >= 3
    assert [file.name for file in tmp_path.iterdir()] == ["memory.json"]
    return result


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")


@needs_proc
@pytest.mark.parametrize(("stored", "most"), [("float32", 1.1), ("bfloat16", 2.2)])
def test_memory(tmp_path, stored, most):
    """The weights once, and little more; stored in half precision they are twice the file's size."""
    result = rise(tmp_path, "--layers", "1", "--heads", "16", "--stored", stored)
    assert result["lens"]["of_checkpoint"] <= most
    assert result["lens"]["of_weights"] >= 0.99  # else the measurement missed them


@needs_proc
@pytest.mark.soak
def test_memory_of_two_gigabytes(tmp_path):
    result = rise(tmp_path, "--layers", "6")
    assert result["checkpoint_bytes"] >= 2 * 10**9
    assert result["lens"]["of_checkpoint"] <= 1.1
