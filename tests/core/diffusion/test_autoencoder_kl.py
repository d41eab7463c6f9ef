"""Autoencoders with a scale and a shift: those of Stable Diffusion 3 and FLUX.1, in small."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from safetensors.torch import load_file, save_file

from lens_core.diffusion.autoencoders.autoencoder_kl.autoencoder import KLAutoencoder
from lens_core.diffusion.autoencoders.autoencoder_kl.config import KLConfig
from lens_core.diffusion.autoencoders.wrap import wrap_vae
from lens_core.errors import ArtifactError, ConfigError


def tiny(**options):
    """A random AutoencoderKL of three levels: four pixels to a cell of its latent."""
    torch.manual_seed(0)
    config = {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 3,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    }
    return AutoencoderKL(**config | options).eval().requires_grad_(False)


def images(count=2, height=24, width=40):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_sizes():
    for patch, stride, channels in ((1, 4, 3), (2, 8, 12), (4, 16, 48)):
        autoencoder = KLAutoencoder(KLConfig(patch=patch), vae=tiny())
        assert (autoencoder.stride, autoencoder.channels) == (stride, channels)
    assert wrap_vae(tiny()).stride == 8


def test_tokens_are_those_of_flux1():
    """(latent - shift)·scale, packed as diffusers' FluxPipeline packs."""
    vae = tiny()
    latents = (vae.encode(images()).latent_dist.mode() - 0.1159) * 0.3611
    theirs = FluxPipeline._pack_latents(latents, *latents.shape)
    torch.testing.assert_close(wrap_vae(vae).encode(images()), theirs, rtol=1e-5, atol=1e-6)


def test_pixels_are_those_of_flux1():
    vae = tiny()
    tokens = torch.randn(2, 15, 12, generator=torch.Generator().manual_seed(2))
    latents = FluxPipeline._unpack_latents(tokens, 24, 40, 4)
    theirs = vae.decode(latents / 0.3611 + 0.1159).sample
    torch.testing.assert_close(wrap_vae(vae).decode(tokens, (3, 5)), theirs, rtol=1e-5, atol=1e-5)


def test_without_a_shift():
    vae = tiny(shift_factor=None, scaling_factor=0.18215)
    autoencoder = KLAutoencoder(KLConfig(patch=1), vae=vae)
    latents = vae.encode(images()).latent_dist.mode() * 0.18215
    torch.testing.assert_close(autoencoder.encode(images()), latents.flatten(2).mT, rtol=1e-5, atol=1e-6)


def test_with_a_mean_and_deviation_of_its_own():
    """As diffusers' SDXL pipelines normalise, for the autoencoders whose config has them."""
    mean, deviation = [0.5, -1.0, 2.0], [2.0, 0.5, 4.0]
    vae = tiny(shift_factor=None, scaling_factor=0.5, latents_mean=mean, latents_std=deviation)
    latents = vae.encode(images()).latent_dist.mode()
    expected = (latents - torch.tensor(mean).view(1, 3, 1, 1)) * 0.5 / torch.tensor(deviation).view(1, 3, 1, 1)
    autoencoder = KLAutoencoder(KLConfig(patch=1), vae=vae)
    torch.testing.assert_close(autoencoder.encode(images()), expected.flatten(2).mT, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_decoding_inverts_packing_and_scale(patch):
    """Encoded tokens decode to what the autoencoder itself makes of the mode."""
    vae = tiny()
    autoencoder = KLAutoencoder(KLConfig(patch=patch), vae=vae)
    pixels = images(2, 32, 48)
    grid = (32 // autoencoder.stride, 48 // autoencoder.stride)
    theirs = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(pixels), grid), theirs, rtol=1e-4, atol=1e-5)


def test_the_same_image_has_the_same_tokens():
    autoencoder = wrap_vae(tiny())
    assert torch.equal(autoencoder.encode(images()), autoencoder.encode(images()))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    autoencoder = KLAutoencoder(KLConfig(patch=4), vae=tiny())
    autoencoder.save(tmp_path)
    again = KLAutoencoder.from_folder(KLConfig(patch=4), tmp_path)
    assert again.stride == 16
    pixels = images(1, 32, 48)
    assert torch.equal(again.encode(pixels), autoencoder.encode(pixels))
    built = KLAutoencoder(KLConfig(path=str(tmp_path), patch=4))
    assert torch.equal(built.encode(pixels), autoencoder.encode(pixels))


def test_reads_the_attention_of_old_checkpoints(tmp_path):
    """Those of Stable Diffusion 1 name the projections otherwise; diffusers knows them, so strictness must too."""
    autoencoder = wrap_vae(tiny())
    autoencoder.save(tmp_path)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = {}
    for key, value in load_file(file).items():
        for new_part, old_part in old.items():
            key = key.replace(new_part, old_part)
        weights[key] = value
    assert any(".query." in key for key in weights)
    save_file(weights, file)
    again = KLAutoencoder.from_folder(KLConfig(), tmp_path)
    assert torch.equal(again.encode(images()), autoencoder.encode(images()))


def test_another_kind_is_refused(tmp_path):
    wrap_vae(tiny()).save(tmp_path)
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "AutoencoderKLFlux2"}))
    with pytest.raises(ArtifactError, match="is of an AutoencoderKLFlux2, not of an AutoencoderKL"):
        KLAutoencoder.from_folder(KLConfig(), tmp_path)


def test_path_is_needed():
    with pytest.raises(ConfigError, match="the autoencoder 'autoencoder-kl' needs 'path' here"):
        KLAutoencoder(KLConfig())


def test_tiles():
    """In tiles of eight tokens, 64 pixels: the decoder sees no more, and the picture is much the same."""
    vae = tiny(mid_block_add_attention=False)
    tokens = torch.randn(1, 9 * 20, 12, generator=torch.Generator().manual_seed(3))
    seen = []
    handle = vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[-2:])))
    tiled = KLAutoencoder(KLConfig(tile=8), vae=vae).decode(tokens, (9, 20))
    handle.remove()
    assert set(seen) == {(16, 16)}
    whole = wrap_vae(vae).decode(tokens, (9, 20))
    assert tiled.shape == whole.shape == (1, 3, 72, 160)
    assert (tiled - whole).abs().mean() < 0.3 * whole.std()
