"""Contracts of the kinds that speak torch: models, autoencoders, text encoders, samplers.

Suffixes: B images, N image tokens, T text tokens, C token channels, E text width, H and W pixels.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from lens_core.testing.base import ComponentContract

if TYPE_CHECKING:
    from pathlib import Path

    from lens_core.config.base import ComponentConfig
    from lens_core.registry import Registry

__all__ = ["AutoencoderContract", "ModelContract", "SamplerContract", "TextEncoderContract"]


class ModelContract(ComponentContract):
    """A denoiser over ragged batches. `in_channels`, `enc_hidden_dim`, `num_text_layers` are what it is built for."""

    kind = "models"
    in_channels = 12
    enc_hidden_dim = 16
    num_text_layers = 1
    without_gradient: frozenset[str] = frozenset()
    """Name prefixes of parameters that rightly receive no gradient."""

    def build(self, registry: Registry, parsed: ComponentConfig) -> Any:
        """The component under test, with all parameters made random so that nothing is zero by initialisation."""
        import torch

        torch.manual_seed(0)
        model = registry.build(
            self.kind,
            parsed,
            in_channels=self.in_channels,
            enc_hidden_dim=self.enc_hidden_dim,
            num_text_layers=self.num_text_layers,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        return model

    def batch(self, which: tuple[int, ...], dtype: Any = None) -> Any:
        """A ragged batch of some of three fixed samples of different sizes, text lengths and times."""
        import torch

        from lens_core.diffusion import RaggedBatch

        generator = torch.Generator().manual_seed(1)
        dtype = dtype or torch.float64
        grids, lengths = [(2, 3), (4, 4), (1, 2)], [5, 0, 3]
        image = [torch.randn(h * w, self.in_channels, generator=generator, dtype=torch.float64) for h, w in grids]
        text = [
            [torch.randn(n, self.enc_hidden_dim, generator=generator, dtype=torch.float64) for n in lengths]
            for _ in range(self.num_text_layers)
        ]
        times = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
        offsets = [
            torch.tensor([0, *itertools.accumulate(sizes)], dtype=torch.int32)
            for sizes in ([len(image[i]) for i in which], [lengths[i] for i in which])
        ]
        return RaggedBatch(
            image=torch.cat([image[i] for i in which]).to(dtype),
            text=[torch.cat([layer[i] for i in which]).to(dtype) for layer in text],
            image_offsets=offsets[0],
            text_offsets=offsets[1],
            grids=torch.tensor([grids[i] for i in which]),
            timestep=times[list(which)].to(dtype),
        )

    def test_keeps_shape_and_dtype(self, lens_registry: Registry, parsed: ComponentConfig) -> None:
        """A velocity per image token, in the dtype of the input."""
        import torch

        model = self.build(lens_registry, parsed)
        batch = self.batch((0, 1, 2), torch.float32)
        velocity = model.forward_ragged(batch)
        assert velocity.shape == batch.image.shape
        assert velocity.dtype == torch.float32
        assert torch.isfinite(velocity).all()

    def test_neighbours_change_nothing(self, lens_registry: Registry, parsed: ComponentConfig) -> None:
        """A sample's result does not depend on what else is in the batch, nor on its place in it."""
        import torch

        model = self.build(lens_registry, parsed).double()
        together = model.forward_ragged(self.batch((0, 1, 2)))
        alone = [model.forward_ragged(self.batch((i,))) for i in range(3)]
        reordered = model.forward_ragged(self.batch((2, 0, 1)))
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(reordered, torch.cat([alone[2], alone[0], alone[1]]), rtol=1e-9, atol=1e-10)

    def test_gradients_arrive(self, lens_registry: Registry, parsed: ComponentConfig) -> None:
        """Every parameter gets a finite gradient, but for those declared in `without_gradient`."""
        import torch

        model = self.build(lens_registry, parsed)
        model.forward_ragged(self.batch((0, 1, 2), torch.float32)).square().mean().backward()
        missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert {name for name in missing if not name.startswith(tuple(self.without_gradient))} == set()
        finite = [torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None]
        assert all(finite)

    def test_builds_on_the_meta_device(self, lens_registry: Registry, parsed: ComponentConfig) -> None:
        """A large model must be countable without its memory."""
        import torch

        with torch.device("meta"):
            model = lens_registry.build(
                self.kind,
                parsed,
                in_channels=self.in_channels,
                enc_hidden_dim=self.enc_hidden_dim,
                num_text_layers=self.num_text_layers,
            )
        assert all(parameter.is_meta for parameter in model.parameters())

    def test_weights_survive_safetensors(
        self, lens_registry: Registry, parsed: ComponentConfig, tmp_path: Path
    ) -> None:
        """Saved and loaded strictly, the model computes the same."""
        import torch
        from safetensors.torch import load_file, save_file

        model = self.build(lens_registry, parsed)
        save_file(model.state_dict(), str(tmp_path / "weights.safetensors"))
        other = self.build(lens_registry, parsed)
        other.load_state_dict(load_file(str(tmp_path / "weights.safetensors")), strict=True)
        batch = self.batch((0, 1, 2), torch.float32)
        assert torch.equal(model.forward_ragged(batch), other.forward_ragged(batch))


class AutoencoderContract(ComponentContract):
    """Pixels to tokens and back. `tolerance` is the largest acceptable mean absolute error of a round trip."""

    kind = "autoencoders"
    tolerance = 1e-6

    @pytest.fixture
    def autoencoder(self, lens_registry: Registry, parsed: ComponentConfig) -> Any:
        """The component under test."""
        return lens_registry.build(self.kind, parsed)

    def pixels(self, autoencoder: Any) -> Any:
        """Two smooth images [2, 3, H, W] in [-1, 1], 3 tokens high and 2 wide."""
        import torch

        height, width = 3 * autoencoder.stride, 2 * autoencoder.stride
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        first = torch.stack([x, y, x * y])
        return torch.stack([first, -first.flip(0)])

    def test_shapes(self, autoencoder: Any) -> None:
        """Tokens are [B, h·w, channels]; decoding gives back the pixels' shape."""
        pixels_BCHW = self.pixels(autoencoder)
        tokens_BNC = autoencoder.encode(pixels_BCHW)
        assert tokens_BNC.shape == (2, 6, autoencoder.channels)
        assert autoencoder.decode(tokens_BNC, (3, 2)).shape == pixels_BCHW.shape

    def test_round_trip(self, autoencoder: Any) -> None:
        """decode(encode(x)) is x, as nearly as declared."""
        pixels_BCHW = self.pixels(autoencoder)
        again = autoencoder.decode(autoencoder.encode(pixels_BCHW), (3, 2))
        assert (again - pixels_BCHW).abs().mean() <= self.tolerance

    def test_batch_equals_its_members(self, autoencoder: Any) -> None:
        """An image's tokens do not depend on the other images."""
        import torch

        pixels_BCHW = self.pixels(autoencoder)
        alone = torch.cat([autoencoder.encode(pixels_BCHW[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(autoencoder.encode(pixels_BCHW), alone)

    def test_tokens_are_in_rows(self, autoencoder: Any) -> None:
        """Token order is row by row: an image with a bright lower right corner has its odd token last."""
        pixels_BCHW = self.pixels(autoencoder)[:1] * 0
        plain = autoencoder.encode(pixels_BCHW)
        pixels_BCHW[..., -autoencoder.stride :, -autoencoder.stride :] = 1
        changed = (autoencoder.encode(pixels_BCHW) - plain).abs().amax(-1)[0]
        assert int(changed.argmax()) == 5


class TextEncoderContract(ComponentContract):
    """Prompts to features. A trainable encoder is fitted on `captions` first."""

    kind = "text_encoders"
    captions = ("a red circle on a white field", "two blue squares", "a large green star above a small one")

    @pytest.fixture
    def encoder(self, lens_registry: Registry, parsed: ComponentConfig) -> Any:
        """The component under test, fitted on a few captions where it can be."""
        target = lens_registry.spec(self.kind, self.name).load_target()
        return target.fit(parsed, iter(self.captions)) if hasattr(target, "fit") else target(parsed)

    def encode(self, encoder: Any, texts: list[str]) -> list[Any]:
        """Features of the texts, packed: a tensor [T, E] per layer."""
        import torch

        ids = encoder.tokenize(texts)
        offsets = torch.tensor([0, *itertools.accumulate(map(len, ids))], dtype=torch.int32)
        return list(encoder(torch.tensor([i for one in ids for i in one], dtype=torch.long), offsets))

    def test_width_and_layers(self, encoder: Any) -> None:
        """As many features as tokens, as wide and as many layers as declared."""
        texts = list(self.captions)
        features = self.encode(encoder, texts)
        assert len(features) == encoder.num_layers
        assert all(layer.shape == (sum(map(len, encoder.tokenize(texts))), encoder.width) for layer in features)

    def test_neighbours_change_nothing(self, encoder: Any) -> None:
        """A prompt's features do not depend on the other prompts."""
        import torch

        together = self.encode(encoder, list(self.captions))
        alone = [self.encode(encoder, [text]) for text in self.captions]
        for layer, features in enumerate(together):
            torch.testing.assert_close(features, torch.cat([one[layer] for one in alone]), rtol=1e-4, atol=1e-5)

    def test_words_and_their_order_matter(self, encoder: Any) -> None:
        """Different prompts give different features."""
        first, second = (self.encode(encoder, [text])[0] for text in ("red circle blue star", "blue circle red star"))
        assert first.shape != second.shape or (first - second).abs().max() > 1e-6

    def test_empty_prompt_has_no_tokens(self, encoder: Any) -> None:
        """The empty prompt is the unconditional branch: zero tokens."""
        assert encoder.tokenize([""]) == [[]]


class SamplerContract(ComponentContract):
    """A time grid and a way along it. `order` is the method's order of accuracy; `calls_per_step` its price."""

    kind = "samplers"
    order = 1
    calls_per_step = 1
    steps_option = "steps"

    def build(self, registry: Registry, steps: int) -> Any:
        """The sampler with a given number of steps."""
        config = registry.parse(self.kind, {"type": self.name, **self.config, self.steps_option: steps})
        return registry.build(self.kind, config)

    def error(self, registry: Registry, steps: int) -> tuple[float, int]:
        """Error on dx/dt = x, whose solution from 1 to 0 is x·exp(-1), and the number of velocity calls."""
        import math

        import torch

        from lens_core.diffusion.samplers import follow

        calls = 0

        def velocity(x: Any, t: Any) -> Any:
            nonlocal calls
            calls += 1
            return x

        sampler = self.build(registry, steps)
        x = torch.ones(4, 3, dtype=torch.float64)
        out = follow(sampler, velocity, x, sampler.times(256))
        return float((out - math.exp(-1)).abs().max()), calls

    def test_time_grid(self, lens_registry: Registry) -> None:
        """From 1 down to 0, strictly, with one more entry than steps."""
        times = self.build(lens_registry, 10).times(256)
        assert len(times) == 11
        assert float(times[0]) == 1
        assert float(times[-1]) == 0
        assert (times[1:] < times[:-1]).all()

    def test_error_shrinks_at_the_declared_order(self, lens_registry: Registry) -> None:
        """Twice the steps, 2^order less error (within a third)."""
        coarse, _ = self.error(lens_registry, 200)
        fine, _ = self.error(lens_registry, 400)
        assert coarse / fine > 2**self.order * 2 / 3

    def test_calls(self, lens_registry: Registry) -> None:
        """As many velocity calls as declared."""
        assert self.error(lens_registry, 10)[1] == 10 * self.calls_per_step

    def test_straight_flow_is_exact(self, lens_registry: Registry) -> None:
        """Under a constant velocity the end point is exact, whatever the grid."""
        import torch

        from lens_core.diffusion.samplers import follow

        sampler = self.build(lens_registry, 7)
        x, velocity = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
        out = follow(sampler, lambda x, t: velocity, x, sampler.times(64))
        torch.testing.assert_close(out, x - velocity, rtol=1e-6, atol=1e-6)

    def test_two_ways_at_once(self, lens_registry: Registry) -> None:
        """Steps of two pictures may be taken in turn: what a way remembers is its own."""
        import torch

        from lens_core.diffusion.samplers import follow

        sampler = self.build(lens_registry, 6)
        times = sampler.times(64)
        starts = [torch.randn(5, 2, generator=torch.Generator().manual_seed(i)) for i in range(2)]
        walks = [sampler.walk(x, times) for x in starts]
        asked = [next(walk) for walk in walks]
        ends: list[Any] = [None, None]
        while any(end is None for end in ends):
            for i, walk in enumerate(walks):
                x, t = asked[i]
                try:
                    asked[i] = walk.send(x * t - 0.3)
                except StopIteration as stop:
                    ends[i] = stop.value
        for x, end in zip(starts, ends, strict=True):
            assert torch.equal(end, follow(sampler, lambda x, t: x * t - 0.3, x, times))
