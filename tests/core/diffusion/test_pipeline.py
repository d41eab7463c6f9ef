"""LensPipeline: the reference's latents step by step, and what users of diffusers expect."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from PIL import Image

from core.diffusion.conftest import LENS_TINY
from lens_core.diffusion import LensPipeline, Request, generate, load_model_folder
from lens_core.errors import ConfigError, LensError

SETTINGS = json.loads((LENS_TINY / "meta.json").read_text())


@pytest.fixture
def pipe(golden_model):
    return LensPipeline(
        transformer=golden_model, vae=AutoencoderKLFlux2.from_pretrained(LENS_TINY / "vae", use_safetensors=True)
    )


@pytest.fixture(scope="module")
def drawing(saved_model):
    """A pipeline with a text encoder, over a folder that Lens wrote."""
    return LensPipeline.from_pretrained(saved_model[1])


def features(cases, name="pipe.features"):
    return [cases[f"{name}.{j}"] for j in range(4)]


def golden_call(pipe, cases, case, **changes):
    arguments = {
        "prompt_embeds": features(cases),
        "height": 64,
        "width": 64,
        "num_inference_steps": SETTINGS["steps"],
        "guidance_scale": SETTINGS["guidance"],
        "latents": cases["pipe.latents"],
        "output_type": "np",
    }
    if case == "with_negative":
        arguments["negative_prompt_embeds"] = features(cases, "pipe.with_negative.negative_features")
    return pipe(**{**arguments, **changes}).images


@pytest.mark.parametrize("case", ["empty_negative", "with_negative"])
def test_equals_the_reference_step_by_step(pipe, cases, case):
    seen = []
    images = golden_call(pipe, cases, case, callback_on_step_end=lambda *told: seen.append(told))
    assert [step for _, step, _, _ in seen] == [0, 1, 2, 3]
    for step, (_, _, _, held) in enumerate(seen):
        torch.testing.assert_close(held["latents"], cases[f"pipe.{case}.latents.{step}"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(images, cases[f"pipe.{case}.image"].numpy(), rtol=0, atol=2e-5)


def test_padded_features_and_their_mask(pipe, cases):
    """Rubbish behind the mask changes nothing."""
    padded = [torch.cat([layer, torch.full((1, 3, 24), 9.0)], dim=1) for layer in features(cases)]
    mask = torch.arange(12)[None] < 9
    images = golden_call(pipe, cases, "empty_negative", prompt_embeds=padded, prompt_mask=mask)
    np.testing.assert_allclose(images, cases["pipe.empty_negative.image"].numpy(), rtol=0, atol=2e-5)


def test_no_second_branch_without_guidance(pipe, cases):
    """One branch, and the negative prompt plays no part."""
    rows = []
    hook = pipe.transformer.img_in.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    plain = golden_call(pipe, cases, "empty_negative", guidance_scale=1.0)
    other = golden_call(pipe, cases, "with_negative", guidance_scale=1.0)
    golden_call(pipe, cases, "with_negative")
    hook.remove()
    assert rows == [16] * 8 + [32] * 4
    assert np.array_equal(plain, other)


def test_reference_rounding_reproduces_the_released_times(golden_model, cases):
    """In bfloat16 the released pipeline feeds 1.0, 0.96875, 0.90625, 0.76953 at 1024² in 4 steps (lens-facts, 1.6)."""
    model = golden_model.bfloat16()
    pipe = LensPipeline(transformer=model, vae=AutoencoderKLFlux2.from_pretrained(LENS_TINY / "vae"))
    seen = []
    model.time_text_embed.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0][0].item()))
    call = {
        "prompt_embeds": features(cases),
        "height": 256,
        "width": 256,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "output_type": "latent",
        # The shift of 4096 tokens, with fewer of them.
        "scheduler": {"type": "flow-euler", "shift": 2.2912},
    }
    pipe(**call)
    pipe(**call, reference_rounding=True)
    assert seen[:4] == pytest.approx([1.0, 0.96738, 0.90814, 0.76720], abs=1e-4)
    assert seen[4:] == pytest.approx([1.0, 0.96875, 0.90625, 0.76953], abs=1e-5)


SIZES = [(16, 16), (8, 24), (16, 16), (24, 8), (12, 12), (8, 24), (24, 8), (12, 12)]
PROMPTS = ["a red circle", "two", "", "blue squares on green", "a", "circle circle circle", "green on blue", "two red"]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_mixed_call_equals_single_calls(drawing, guidance):
    """Eight prompts, four sizes, one call: image by image what eight calls give."""
    heights, widths = zip(*SIZES, strict=True)
    generators = [torch.Generator().manual_seed(number) for number in range(8)]
    call = {"guidance_scale": guidance, "output_type": "pt", "negative_prompt": "grey"}
    together = drawing(PROMPTS, height=heights, width=widths, generator=generators, **call).images
    for number, (prompt, (height, width)) in enumerate(zip(PROMPTS, SIZES, strict=True)):
        generator = torch.Generator().manual_seed(number)
        alone = drawing(prompt, height=height, width=width, generator=generator, **call).images[0]
        assert together[number].shape == (3, height, width)
        torch.testing.assert_close(together[number], alone, rtol=1e-5, atol=1e-5)


def test_a_seed_is_the_seed_of_generate(drawing, saved_model):
    model = load_model_folder(str(saved_model[1]))
    (expected,) = generate(model, [Request(prompt="a red circle", height=16, width=16, seed=7)])
    (image,) = drawing("a red circle", height=16, width=16, seed=7).images
    assert image.size == (16, 16)
    assert np.array_equal(np.asarray(image), expected)


def test_several_images_of_each_prompt(drawing):
    call = {"height": 8, "width": 8, "seed": 3, "output_type": "np"}
    both = drawing(["two", "a red circle"], num_images_per_prompt=2, **call).images
    assert both.shape == (4, 8, 8, 3)
    assert not np.array_equal(both[0], both[1])
    np.testing.assert_allclose(both[2:], drawing("a red circle", num_images_per_prompt=2, **call).images, atol=1e-5)


def test_generators_are_reproducible_and_different(drawing):
    def draw(seed):
        return drawing("two", height=8, width=8, generator=torch.Generator().manual_seed(seed), output_type="np").images

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


def test_sizes_default_to_the_models(drawing):
    assert drawing("two").images[0].size == (16, 16)


def test_latents_and_tuples(drawing):
    (latents,) = drawing("two", height=8, width=16, output_type="latent", return_dict=False, seed=0)
    assert latents.shape == (1, 8, 48)
    assert latents.dtype == torch.float32


def test_taking_turns_and_the_table_change_nothing(saved_model):
    """On a CPU there is nothing to move, but the same code runs, and the modulation is computed ahead."""
    pipe = LensPipeline.from_pretrained(saved_model[1])
    call = {"prompt": PROMPTS[:3], "height": [16, 8, 16], "width": [16, 24, 16], "seed": 5, "output_type": "pt"}
    expected = pipe(**call).images
    pipe.enable_model_cpu_offload("cpu")
    for again, first in zip(pipe(**call).images, expected, strict=True):
        assert torch.equal(again, first)
    pipe.enable_modulation_table()
    times = []
    pipe.transformer.time_text_embed.register_forward_hook(lambda _module, inputs, _output: times.append(inputs[0]))
    for _ in range(2):
        for again, first in zip(pipe(**call).images, expected, strict=True):
            torch.testing.assert_close(again, first, rtol=0, atol=1e-5)
    assert [len(each) for each in times] == [3]  # once for all steps of both calls


def picture(height=16, width=16):
    shades = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    return Image.fromarray(shades.astype(np.uint8))


def test_little_strength_stays_near_the_image(drawing):
    def distance(strength):
        drawn = drawing("two", image=picture(), strength=strength, seed=1, output_type="np", num_inference_steps=20)
        return np.abs(drawn.images[0] - np.asarray(picture()) / 255).mean()

    assert distance(0.05) < distance(0.4) < distance(1.0)


def test_full_strength_forgets_the_image(drawing):
    plain = drawing("two", height=16, width=16, seed=1, output_type="np").images
    again = drawing("two", image=picture(), strength=1.0, seed=1, output_type="np").images
    np.testing.assert_allclose(again, plain, atol=1e-6)


def test_starting_late_follows_the_flow_from_there(drawing):
    """With a transformer that is silent nothing moves: what comes out is the image, mixed with noise as it began."""
    quiet = LensPipeline(drawing.transformer, drawing.vae, drawing.text_encoder, scheduler={"type": "flow-euler"})
    quiet.model.prediction = drawing.model.prediction
    weights = [p.clone() for p in quiet.transformer.proj_out.parameters()]
    with torch.no_grad():
        for parameter in quiet.transformer.proj_out.parameters():
            parameter.zero_()
        latents = quiet(
            "two",
            image=picture(),
            strength=0.5,
            num_inference_steps=4,
            seed=1,
            output_type="latent",
            guidance_scale=1.0,
        ).images
        for parameter, weight in zip(quiet.transformer.proj_out.parameters(), weights, strict=True):
            parameter.copy_(weight)
    from lens_core.diffusion import noise

    pixels = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    expected = 0.5 * drawing.vae.encode(pixels) + 0.5 * noise(1, 0, (16, 48))
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheduler", ["flow-euler", "flow-multistep"])
def test_inpainting_keeps_what_is_masked_and_redraws_the_rest(drawing, scheduler):
    mask = np.zeros((16, 16), np.uint8)
    mask[3:9, 5:16] = 255  # not on the borders of tokens
    call = {"prompt": "two", "image": picture(), "mask_image": Image.fromarray(mask), "strength": 1.0, "seed": 1}
    drawn = np.asarray(drawing(**call, scheduler=scheduler).images[0])
    kept = mask == 0
    assert np.array_equal(drawn[kept], np.asarray(picture())[kept])
    assert (drawn[~kept] != np.asarray(picture())[~kept]).mean() > 0.9
    # The tokens that no redrawn pixel touches end as the image's own.
    latents = drawing(**call, scheduler=scheduler, output_type="latent").images[0].view(4, 4, -1)
    pixels = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    own = drawing.vae.encode(pixels)[0].view(4, 4, -1)
    torch.testing.assert_close(latents[3], own[3], rtol=0, atol=1e-5)
    assert (latents[0, 1] - own[0, 1]).abs().max() > 0.1


def test_starts_of_different_strength_share_a_call(drawing):
    pictures = [picture(), None, picture(8, 24)]
    sizes = {"height": [16, 16, 8], "width": [16, 16, 24]}
    call = {"strength": 0.4, "num_inference_steps": 6, "seed": 2, "output_type": "pt"}
    together = drawing(PROMPTS[:3], image=pictures, **sizes, **call).images
    for number in range(3):
        size = {side: values[number] for side, values in sizes.items()}
        alone = drawing(PROMPTS[number], image=pictures[number], **size, **call).images[0]
        torch.testing.assert_close(together[number], alone, rtol=1e-5, atol=1e-5)


def test_an_image_of_another_size_is_fitted(drawing):
    assert drawing("two", image=picture(21, 33), seed=0).images[0].size == (32, 20)
    assert drawing("two", image=picture(21, 33), height=8, width=8, seed=0).images[0].size == (8, 8)


def test_what_is_saved_draws_the_same(pipe, cases, tmp_path):
    """With a VAE of diffusers and without a text encoder."""
    pipe.save_pretrained(tmp_path / "model")
    again = LensPipeline.from_pretrained(tmp_path / "model")
    expected = golden_call(pipe, cases, "with_negative")
    assert np.array_equal(golden_call(again, cases, "with_negative"), expected)
    with pytest.raises(ConfigError, match=r"the model has no text_encoder: hand over features instead of prompts$"):
        again("a red circle")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKLFlux2"]
    assert index["transformer"] == ["lens_core.diffusion", "LensTransformer2DModel"]
    assert index["text_encoder"] == [None, None]


def test_diffusers_reads_the_scheduler_that_is_saved(pipe, cases, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "model" / "scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.25, 4), mu=float(cases["mu.4096.4"]))
    torch.testing.assert_close(scheduler.sigmas, cases["sigmas.4096.4"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scheduler", "shift"),
    [
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "released"),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), pytest.approx(np.log(3.0))),
        ("flow-multistep", "released"),
        (None, "released"),
    ],
)
def test_schedulers_that_users_hand_over(golden_model, drawing, scheduler, shift):
    assert LensPipeline(golden_model, drawing.vae, scheduler=scheduler).model.sampler.shift == shift


def test_a_static_shift_of_diffusers_is_the_same_grid(golden_model, drawing):
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7))
    config = LensPipeline(golden_model, drawing.vae, scheduler=theirs).model.sampler
    ours = drawing.model.registry.build("samplers", config.model_copy(update={"steps": 7})).times(100)
    torch.testing.assert_close(ours, theirs.sigmas, rtol=0, atol=1e-6)


def test_loras_come_and_go(saved_model):
    pipe = LensPipeline.from_pretrained(saved_model[1])
    call = {"prompt": "two", "height": 8, "width": 8, "seed": 0, "output_type": "np"}
    plain = pipe(**call).images
    lora = {
        "transformer.transformer_blocks.0.attn.img_qkv.lora_A.weight": torch.ones(2, 32),
        "transformer.transformer_blocks.0.attn.img_qkv.lora_B.weight": torch.ones(96, 2),
    }
    pipe.load_lora_weights(lora, adapter_name="ones")
    changed = pipe(**call).images
    assert np.abs(changed - plain).max() > 1e-3
    pipe.set_adapters("ones", 0.0)
    np.testing.assert_allclose(pipe(**call).images, plain, atol=1e-6)
    pipe.set_adapters(["ones"], [1.0])
    pipe.fuse_lora()
    np.testing.assert_allclose(pipe(**call).images, changed, atol=1e-5)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    np.testing.assert_allclose(pipe(**call).images, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": None}, "give either prompt or prompt_embeds"),
        ({"prompt_embeds": [torch.zeros(1, 2, 16)]}, "give either prompt or prompt_embeds"),
        ({"height": 15}, "a size of 16x15 is not a multiple of 4 pixels"),
        ({"height": -4}, "a size of 16x-4 is not a multiple"),
        ({"height": [8, 8]}, "height: 2 values for 1 prompts"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "negative_prompt: 1 values for 2 prompts"),
        ({"latents": torch.zeros(1, 3, 48)}, "latents of shape (3, 48) are not the 16 tokens of 48 channels"),
        ({"latents": torch.zeros(2, 16, 48)}, "2 latents for 1 images"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 images"),
        ({"output_type": "jpg"}, "output_type 'jpg' is not one of pil, np, pt, latent"),
        ({"mask_image": np.ones((16, 16), bool)}, "mask_image needs an image"),
        ({"image": picture(), "strength": 0.0}, "a strength of 0.0 is not above 0"),
        ({"image": picture(), "strength": 1.5}, "a strength of 1.5 is not above 0 and at most 1"),
        ({"image": torch.zeros(3, 8, 8)}, "the picture to start from is 8x8, not 16x16"),
        ({"scheduler": "flow-eular"}, "there is no sampler 'flow-eular'"),
        ({"num_inference_steps": 0}, "the sampler's steps: input should be greater than 0"),
        ({"guidance_scale": float("nan")}, "a guidance of nan is no number"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0, not 1 or more"),
        ({"height": 0}, "a size of 16x0 is not a multiple"),
        ({"seed": 1, "generator": torch.Generator()}, "give a seed or a generator, not both"),
        ({"negative_prompt_embeds": [torch.zeros(2, 3, 16)]}, "negative_prompt_embeds: 2 for 1 prompts"),
        ({"prompt": None, "prompt_embeds": []}, "prompt_embeds has no layers"),
        ({"prompt": None, "prompt_embeds": [torch.zeros(1, 3, 16)] * 2}, "are not the 1 layers of width 16"),
        ({"prompt": None, "prompt_embeds": [torch.zeros(1, 3, 8)]}, "are not the 1 layers of width 16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_arguments_that_do_not_fit(drawing, changes, words):
    with pytest.raises(LensError) as caught:
        drawing(**{"prompt": "two", "height": 16, "width": 16, **changes})
    message = str(caught.value)
    assert words in message
    assert message.splitlines() == [message]


def test_features_that_do_not_fit(pipe, cases):
    with pytest.raises(ConfigError, match=r"prompt_embeds of shapes .* and prompt_mask of \(1, 4\) do not fit"):
        golden_call(pipe, cases, "empty_negative", prompt_mask=torch.ones(1, 4))


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchHeunDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        EulerDiscreteScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers_that_cannot_be_taken_over(drawing, scheduler):
    with pytest.raises(ConfigError, match=r"is not known|cannot be taken over"):
        drawing("two", scheduler=scheduler)


def test_weights_that_overflow_are_no_black_picture(saved_model):
    pipe = LensPipeline.from_pretrained(saved_model[1])
    with torch.no_grad():
        pipe.transformer.proj_out.bias.fill_(float("inf"))
    with pytest.raises(LensError, match="the picture is not finite"):
        pipe("two", height=8, width=8, seed=0)


def test_a_used_folder_is_not_saved_into(pipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        pipe.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_parts_that_cannot_be_used(golden_model, drawing):
    with pytest.raises(ConfigError, match="a vae of the class Linear is not known"):
        LensPipeline(golden_model, torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="must be one of Lens' text encoders"):
        LensPipeline(golden_model, drawing.vae, text_encoder=torch.nn.Linear(1, 1))


def test_a_lora_of_the_modulation_reaches_the_table(saved_model):
    pipe = LensPipeline.from_pretrained(saved_model[1])
    call = {"prompt": "two", "height": 8, "width": 8, "seed": 0, "output_type": "np"}
    pipe.enable_modulation_table()
    plain = pipe(**call).images
    lora = {
        "transformer_blocks.0.img_mod.1.lora_A.weight": torch.ones(2, 32),
        "transformer_blocks.0.img_mod.1.lora_B.weight": torch.ones(192, 2),
    }
    pipe.load_lora_weights(lora)
    assert np.abs(pipe(**call).images - plain).max() > 1e-3
    pipe.unload_lora_weights()
    assert np.array_equal(pipe(**call).images, plain)


def test_the_layout_is_made_once_for_all_steps(drawing, monkeypatch):
    """Rotary table and attention's plan do not change from step to step."""
    from lens_core.diffusion.models.lens import model as lens

    made = []
    whole = lens.rope_table
    monkeypatch.setattr(lens, "rope_table", lambda *arguments: made.append(1) or whole(*arguments))
    drawing("two", height=8, width=8, num_inference_steps=4, seed=0)
    assert len(made) == 1


def test_a_sampler_by_name_takes_the_models_steps_and_shift(saved_model):
    pipe = LensPipeline.from_pretrained(saved_model[1])
    pipe.model.sampler = pipe.model.sampler.model_copy(update={"steps": 3, "shift": 1.5})
    steps = []
    pipe(
        "two",
        height=8,
        width=8,
        seed=0,
        scheduler="flow-multistep",
        callback_on_step_end=lambda *told: steps.append(told),
    )
    assert len(steps) == 3
    assert steps[0][2] == pytest.approx(float(pipe.model.registry.build("samplers", pipe.model.sampler).times(4)[1]))


def test_memory_switches_do_not_cancel_each_other(saved_model):
    pipe = LensPipeline.from_pretrained(saved_model[1])
    pipe.enable_model_cpu_offload("cpu")
    pipe.enable_modulation_table()
    assert (pipe.model._turns, pipe.model._table) == (True, True)
    pipe.to("cpu")
    assert (pipe.model._turns, pipe.model._table) == (True, True)
