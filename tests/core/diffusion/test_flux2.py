"""The FLUX.2 autoencoder: the goldens, diffusers' own packing, strict loading, bounded memory."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lens_core.diffusion.autoencoders import diffusers_autoencoder
from lens_core.diffusion.autoencoders.flux2.autoencoder import Flux2Autoencoder
from lens_core.diffusion.autoencoders.flux2.config import Flux2Config
from lens_core.diffusion.autoencoders.wrap import wrap_vae
from lens_core.errors import ArtifactError, ConfigError

LENS_TINY = Path(__file__).parents[2] / "goldens" / "lens-tiny"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def flux2():
    """The reference's tiny autoencoder with its random batch-norm statistics."""
    return Flux2Autoencoder.from_folder(Flux2Config(), LENS_TINY)


@pytest.fixture
def folder(tmp_path):
    """A model folder that a test may damage."""
    shutil.copytree(LENS_TINY / "vae", tmp_path / "model" / "vae")
    return tmp_path / "model"


def images(count=1, height=64, width=64, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tokens(autoencoder, count, h, w, seed=0):
    return torch.randn(count, h * w, autoencoder.channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("run", ["empty_negative", "with_negative"])
def test_decoding_is_that_of_the_reference(flux2, cases, run):
    pixels = flux2.decode(cases[f"pipe.{run}.latents.3"], (4, 4))
    image_BHWC = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(image_BHWC, cases[f"pipe.{run}.image"], rtol=0, atol=1e-5)


def test_sizes(flux2):
    assert (flux2.stride, flux2.channels) == (16, 16)
    with torch.device("meta"):
        released = Flux2Autoencoder.wrap(AutoencoderKLFlux2())
    assert (released.stride, released.channels) == (16, 128)


def test_stride_follows_the_config():
    config = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 3, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    wrapped = Flux2Autoencoder.wrap(AutoencoderKLFlux2(**config, **blocks, patch_size=(4, 4)))
    assert (wrapped.stride, wrapped.channels) == (8, 48)
    encoded = wrapped.encode(images(1, 16, 24))
    assert encoded.shape == (1, 6, 48)
    assert wrapped.decode(encoded, (2, 3)).shape == (1, 3, 16, 24)
    with pytest.raises(ArtifactError, match="patch_size, 2x1, is not square"):
        Flux2Autoencoder.wrap(AutoencoderKLFlux2(**config, **blocks, patch_size=(2, 1)))


def test_encoding_is_that_of_diffusers(flux2):
    """Its pipeline encodes reference images to the mode, packs, and normalises: the same numbers come out."""
    pixels = images(2, 48, 80)
    vae = flux2.vae
    packed = Flux2Pipeline._patchify_latents(vae.encode(pixels).latent_dist.mode())
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    theirs = Flux2Pipeline._pack_latents((packed - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation)
    encoded = flux2.encode(pixels)
    assert encoded.shape == (2, 15, 16)
    torch.testing.assert_close(encoded, theirs, rtol=1e-5, atol=1e-6)


def test_statistics_are_those_that_a_batch_norm_applies(flux2):
    """Encoding is the batch norm in evaluation mode; its eps is 1e-4 and shows where a variance is small."""
    vae = AutoencoderKLFlux2.from_config(flux2.vae.config).eval()
    vae.load_state_dict(flux2.vae.state_dict())
    vae.bn.running_var.mul_(1e-4)
    packed = Flux2Pipeline._patchify_latents(vae.encode(images()).latent_dist.mode())
    expected = Flux2Pipeline._pack_latents(vae.bn(packed))
    torch.testing.assert_close(Flux2Autoencoder.wrap(vae).encode(images()), expected, rtol=1e-4, atol=1e-4)


def test_channels_of_a_token_are_latent_channel_then_row_then_column(flux2):
    """A token's channel c·4 + p1·2 + p2 goes to the latent's cell (2·row + p1, 2·column + p2)."""
    seen = []
    handle = flux2.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        for channel in (0, 1, 2, 6, 15):
            one = torch.zeros(1, 6, 16)
            one[0, 4, channel] = 1
            seen.clear()
            flux2.decode(one, (2, 3))
            flux2.decode(one * 0, (2, 3))
            # the 1x1 convolution before the decoder mixes channels, not places
            changed = (seen[0] - seen[1]).abs().sum(1)[0].nonzero().tolist()
            assert changed == [[2 * 1 + channel // 2 % 2, 2 * 1 + channel % 2]]
    finally:
        handle.remove()
    mean, deviation = flux2.statistics()
    assert mean.shape == deviation.shape == (16,)


def test_saved_and_loaded_it_is_the_same(flux2, tmp_path):
    flux2.save(tmp_path)
    assert sorted(file.name for file in (tmp_path / "vae").iterdir()) == ["config.json", WEIGHTS]
    saved = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert saved["_class_name"] == "AutoencoderKLFlux2"
    assert "_name_or_path" not in saved, "a model folder says nothing of where its maker keeps things"
    again = Flux2Autoencoder.from_folder(Flux2Config(), tmp_path)
    for (name, ours), theirs in zip(flux2.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(again.encode(images()), flux2.encode(images()))
    half = Flux2Autoencoder.from_folder(Flux2Config(), tmp_path, dtype=torch.bfloat16)
    half.save(tmp_path / "half")
    again = Flux2Autoencoder.from_folder(Flux2Config(), tmp_path / "half")
    assert again.vae.dtype == torch.bfloat16, "as stored"
    assert torch.equal(again.statistics()[1], flux2.statistics()[1])


def test_saves_what_diffusers_reads(flux2, tmp_path):
    flux2.save(tmp_path)
    vae = AutoencoderKLFlux2.from_pretrained(tmp_path / "vae", use_safetensors=True)
    assert torch.equal(vae.bn.running_var, flux2.vae.bn.running_var)


def test_half_precision_speaks_float32_and_keeps_its_statistics(flux2):
    half = Flux2Autoencoder.from_folder(Flux2Config(), LENS_TINY, dtype=torch.bfloat16)
    assert half.vae.dtype == torch.bfloat16
    assert torch.equal(half.statistics()[1], flux2.statistics()[1])
    encoded = half.encode(images())
    decoded = half.decode(tokens(flux2, 1, 4, 4), (4, 4))
    assert encoded.dtype == decoded.dtype == torch.float32
    assert (encoded - flux2.encode(images())).abs().mean() < 0.05
    assert (decoded - flux2.decode(tokens(flux2, 1, 4, 4), (4, 4))).abs().mean() < 0.05


def test_float16_is_widened_unless_the_config_allows_it(folder):
    def dtype():
        return Flux2Autoencoder.from_folder(Flux2Config(), folder, dtype=torch.float16).vae.dtype

    assert dtype() == torch.float32
    edit(folder, force_upcast=False)
    assert dtype() == torch.float16


def test_loaded_is_frozen_and_wrapped_is_left_alone(flux2):
    assert not any(parameter.requires_grad for parameter in flux2.parameters())
    assert not flux2.vae.training
    vae = AutoencoderKLFlux2.from_config(flux2.vae.config)
    wrapped = wrap_vae(vae)
    assert wrapped.vae is vae
    assert vae.training
    assert all(parameter.requires_grad for parameter in vae.parameters())


def test_gradients_reach_the_tokens(flux2):
    """A reward on pixels can teach the denoiser through the frozen decoder."""
    wish = tokens(flux2, 1, 2, 2).requires_grad_()
    flux2.decode(wish, (2, 2)).square().sum().backward()
    assert wish.grad.abs().sum() > 0


def test_odd_sizes_are_refused(flux2):
    with pytest.raises(ValueError, match="24x16 is not a multiple of the autoencoder's stride, 16"):
        flux2.encode(torch.zeros(1, 3, 16, 24))


class TestPath:
    """Where the weights come from when no model folder brings them."""

    @pytest.mark.parametrize("where", [LENS_TINY, LENS_TINY / "vae"])
    def test_folder_of_the_autoencoder_or_of_the_model(self, flux2, where):
        built = Flux2Autoencoder(Flux2Config(path=str(where)))
        assert torch.equal(built.encode(images()), flux2.encode(images()))

    def test_is_needed(self):
        with pytest.raises(ConfigError, match=r"path: the autoencoder 'flux2' needs 'path' here"):
            Flux2Autoencoder(Flux2Config())

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/nowhere/at/all", "/nowhere/at/all is no folder, and no hub id of the form owner/name"),
            ("vae", "vae is no folder, and no hub id"),
            ("../vae", "is no folder, and no hub id"),
            ("nobody/nothing", "autoencoder nobody/nothing is no folder here, and cannot be had from the hub: "),
            ("nobody/nothing/vae", "autoencoder nobody/nothing/vae is no folder here, and cannot be had"),
        ],
    )
    def test_that_leads_nowhere(self, path, message, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import only
        one_line(ArtifactError, message, Flux2Autoencoder, Flux2Config(path=path))

    def test_folder_without_an_autoencoder(self, tmp_path):
        message = "holds no autoencoder: it has neither config.json nor vae/config.json"
        one_line(ArtifactError, message, Flux2Autoencoder, Flux2Config(path=str(tmp_path)))


class TestDamage:
    """Every damage is one line that says where."""

    def load(self, folder):
        return Flux2Autoencoder.from_folder(Flux2Config(), folder)

    def test_nothing_there(self, tmp_path):
        one_line(ArtifactError, r"vae/config\.json is missing", self.load, tmp_path)

    def test_no_weights(self, folder):
        (folder / "vae" / WEIGHTS).unlink()
        one_line(ArtifactError, "vae cannot be read: Error no file named diffusion_pytorch_model", self.load, folder)

    def test_pickled_weights_are_never_read(self, folder):
        (folder / "vae" / WEIGHTS).unlink()
        torch.save({}, folder / "vae" / "diffusion_pytorch_model.bin")
        one_line(ArtifactError, "no file named diffusion_pytorch_model.safetensors", self.load, folder)

    @pytest.mark.parametrize("keep", [0, 5, 100, 50_000, -1])
    def test_truncated(self, folder, keep):
        file = folder / "vae" / WEIGHTS
        file.write_bytes(file.read_bytes()[:keep])
        one_line(ArtifactError, rf"{WEIGHTS} is damaged or truncated: ", self.load, folder)

    def test_keys_missing_and_unknown(self, folder):
        self.rewrite(folder, lambda weights: weights.pop("bn.running_mean"))
        one_line(ArtifactError, "do not fit its config: 'bn.running_mean' is missing$", self.load, folder)
        self.rewrite(folder, lambda weights: weights.pop("decoder.conv_in.bias"))
        message = r"do not fit its config: 'bn.running_mean' is missing \(and 1 more\)$"
        one_line(ArtifactError, message, self.load, folder)

    def test_key_unknown(self, folder):
        self.rewrite(folder, lambda weights: weights.update(extra=torch.zeros(2)))
        one_line(ArtifactError, "'extra' is unknown$", self.load, folder)

    def test_wrong_shape(self, folder):
        self.rewrite(folder, lambda weights: weights.update({"bn.running_mean": torch.zeros(3)}))
        one_line(ArtifactError, r"bn.running_mean expected shape torch.Size\(\[16\]\)", self.load, folder)

    def test_config_that_is_no_json(self, folder):
        (folder / "vae" / "config.json").write_text("{")
        one_line(ArtifactError, "config.json' is not a valid JSON file", self.load, folder)

    @pytest.mark.parametrize("text", ["[]", "3", "null", "{}"])
    def test_config_that_is_none(self, folder, text):
        (folder / "vae" / "config.json").write_text(text)
        one_line(ArtifactError, "the autoencoder .*vae cannot be read: ", self.load, folder)

    @pytest.mark.parametrize(
        "changes",
        [
            {"down_block_types": ["Nonsense"] * 4},
            {"block_out_channels": []},
            {"block_out_channels": "wide"},
            {"latent_channels": -1},
            {"norm_num_groups": 7},
            {"act_fn": "nonsense"},
            {"patch_size": 2},
        ],
    )
    def test_config_that_makes_no_sense(self, folder, changes):
        edit(folder, **changes)
        one_line(ArtifactError, "the autoencoder .*vae cannot be read: ", self.load, folder)

    def test_another_kind_of_autoencoder(self, folder):
        edit(folder, _class_name="AutoencoderKL")
        message = r"vae/config.json is of an AutoencoderKL, not of an AutoencoderKLFlux2"
        one_line(ArtifactError, message, self.load, folder)

    def test_diffusers_stays_silent(self, folder, capfd):
        """What it would warn of is told once, by the error."""
        edit(folder, force_upcast=True)
        self.load(folder)
        self.test_key_unknown(folder)
        captured = capfd.readouterr()
        assert captured.out + captured.err == ""

    def rewrite(self, folder, change):
        file = folder / "vae" / WEIGHTS
        weights = load_file(file)
        change(weights)
        save_file(weights, file)


def test_wrap_chooses_by_class():
    class Derived(AutoencoderKLFlux2):
        pass

    with torch.device("meta"):
        assert type(wrap_vae(AutoencoderKLFlux2())).__name__ == "Flux2Autoencoder"
        assert type(wrap_vae(Derived())).__name__ == "Flux2Autoencoder"
        assert type(wrap_vae(AutoencoderKL())).__name__ == "KLAutoencoder"
        one_line(
            ConfigError,
            "a vae of the class Linear is not known; known: AutoencoderKLFlux2, AutoencoderKL$",
            wrap_vae,
            nn.Linear(1, 1),
        )


class TestMemory:
    """Large images are decoded in tiles, many images one after another."""

    def test_asked_for_tiles(self, flux2):
        """Tokens of 8 x 8 at most reach the decoder; elsewhere than near the seams little changes."""
        tiled = Flux2Autoencoder(Flux2Config(tile=8), vae=flux2.vae)
        what = tokens(flux2, 1, 12, 20)
        seen = []
        handle = flux2.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[-2:]))
        try:
            pixels = tiled.decode(what, (12, 20))
        finally:
            handle.remove()
        assert set(seen) == {(16, 16)}
        assert len(seen) == 2 * 3
        assert pixels.shape == (1, 3, 192, 320)
        whole = flux2.decode(what, (12, 20))
        assert 0 < (pixels - whole).abs().mean() < 0.3 * whole.std()

    def test_small_images_are_not_tiled(self, flux2):
        tiled = Flux2Autoencoder(Flux2Config(tile=8), vae=flux2.vae)
        what = tokens(flux2, 2, 8, 5)
        assert torch.equal(tiled.decode(what, (8, 5)), flux2.decode(what, (8, 5)))

    def test_tiles_of_a_decoder_with_short_sight_are_exact(self):
        """Packing and statistics are right in tiles: without attention, normalisation or depth nothing else is left."""
        torch.manual_seed(0)
        vae = AutoencoderKLFlux2(
            block_out_channels=(4,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            norm_num_groups=4,
            layers_per_block=1,
            latent_channels=2,
            mid_block_add_attention=False,
        ).requires_grad_(False)
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2)
        vae.decoder = nn.Conv2d(2, 3, 3, padding=1)
        what = torch.randn(2, 13 * 21, 8)
        for tile in (8, 9, 12):
            tiled = Flux2Autoencoder(Flux2Config(tile=tile), vae=vae).decode(what, (13, 21))
            torch.testing.assert_close(tiled, Flux2Autoencoder.wrap(vae).decode(what, (13, 21)), rtol=1e-5, atol=1e-5)

    def test_automatic_tiles_keep_the_bound(self, flux2, monkeypatch):
        """With the bound at 16 MiB, no call of the decoder is estimated at more."""
        monkeypatch.setattr(diffusers_autoencoder, "MAX_BYTES", 16 * 2**20)
        per_pixel = 3 * 16 * 4
        largest = (16 * 2**20 // per_pixel) ** 0.5 // 16
        seen = []
        handle = flux2.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
        try:
            flux2.decode(tokens(flux2, 3, 20, 20), (20, 20))
            flux2.decode(tokens(flux2, 9, 8, 8), (8, 8))
        finally:
            handle.remove()
        assert all(b * h * w * 64 * per_pixel <= 16 * 2**20 for b, _, h, w in seen)
        assert {tuple(shape[-2:]) for shape in seen[:12]} == {(2 * largest, 2 * largest)}
        assert [shape[0] for shape in seen[12:]] == [5, 4]

    def test_released_sizes_are_decoded_at_once(self):
        with torch.device("meta"):
            released = Flux2Autoencoder.wrap(AutoencoderKLFlux2())
        assert released._largest_tile() == 104
        assert released._images_at_once(2080 * 1040) == 1
        assert released._images_at_once(1024 * 1024) == 2
        assert 2080 * 1040 * released._bytes_per_pixel() < diffusers_autoencoder.MAX_BYTES

    def test_estimate_is_what_the_full_size_decoder_takes(self):
        """Counted on the meta device: every tensor's storage from its birth to its death."""
        with torch.device("meta"):
            released = Flux2Autoencoder.wrap(AutoencoderKLFlux2().eval().requires_grad_(False))
            what = torch.empty(1, 32 * 32, 128)
            with LiveBytes() as live:
                released.decode(what, (32, 32))
        estimate = 512 * 512 * released._bytes_per_pixel()
        assert estimate == pytest.approx(live.peak, rel=0.02)


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make and that are still alive."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and (storage := value.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, storage.nbytes())
        return out

    def free(self, size):
        self.now -= size


def edit(folder, **changes):
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def one_line(error, message, call, *arguments):
    with pytest.raises(error, match=message) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
