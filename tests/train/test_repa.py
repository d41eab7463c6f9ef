"""Representation alignment: what is aimed at, what it costs, whom it moves; the finished model has nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from lens_core.errors import ArtifactError, ConfigError, Stopped
from lens_train.data.loader import LoadedPack
from lens_train.loop.budget import Budget
from lens_train.loop.metrics import METRICS
from lens_train.objective.config import ObjectiveConfig, RepaConfig
from lens_train.objective.repa import PatchFeatures, Repa
from lens_train.planning.config import BatchConfig
from train.parallel.nano import SAMPLES, denoiser, pack, samples

MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
CPU = torch.device("cpu")
DATA = [
    {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 12}},
    {"name": "dense", "type": "caption", "source": "images", "captioner": {"type": "scene-graph"}},
]


def vision_model(folder, *, kind="Dinov2", patch=4, resample=3, **options):
    """A tiny random vision transformer whose features differ from patch to patch; returns its folder."""
    import transformers

    torch.manual_seed(1)
    shared = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
    config = getattr(transformers, f"{kind}Config")(**shared, image_size=8 * patch, patch_size=patch, **options)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    settings = {"size": {"height": 8, "width": 8}, "image_mean": MEAN, "image_std": STD, "resample": resample}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def dino(tmp_path_factory):
    return vision_model(tmp_path_factory.mktemp("dino"))


def photo(height, width, seed=0):
    """Something with coarse and fine detail: uint8 [H, W, 3]."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def features_of(folder, pixels_HW3, **options):
    """Every token's features, class and all, by transformers alone."""
    from transformers import AutoModel

    values = ((pixels_HW3 / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
    with torch.no_grad():
        output = AutoModel.from_pretrained(folder).eval()(pixel_values=torch.tensor(values).float(), **options)
    return output.last_hidden_state[0]


def pixels_of(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


def patch_features(folder, stride=8):
    return PatchFeatures(folder, stride=stride, device=CPU, dtype=torch.float32)


def repa(folder, *, hidden, stride=8, **options):
    config = RepaConfig(path=str(folder), **{"block": 1, "width": 24, **options})
    return Repa(config, patch_features(folder, stride), hidden=hidden, seed=3)


@pytest.mark.parametrize(
    ("kind", "others", "options", "call"),
    [
        ("Dinov2", 1, {}, {}),
        ("Dinov2WithRegisters", 4, {"num_register_tokens": 3}, {}),
        ("DINOv3ViT", 3, {"num_register_tokens": 2, "intermediate_size": 32}, {}),
        ("ViT", 1, {"intermediate_size": 32}, {"interpolate_pos_encoding": True}),
    ],
)
def test_features_are_those_of_the_patches_alone(tmp_path, kind, others, options, call):
    folder, image = vision_model(tmp_path, kind=kind, patch=8, **options), photo(24, 40)
    found = patch_features(folder)(pixels_of(image))
    wanted = features_of(folder, image, **call)
    assert len(wanted) == others + 3 * 5
    torch.testing.assert_close(found[0], wanted[others:], rtol=1e-4, atol=1e-5)
    assert found[0].std(0).min() > 0.01


@pytest.mark.parametrize(("resample", "other"), [(2, 3), (3, 2)])
def test_images_are_scaled_to_one_patch_a_token_by_the_filter_that_the_processor_names(tmp_path, resample, other):
    folder, image = vision_model(tmp_path, patch=2, resample=resample), photo(48, 64)
    found = patch_features(folder)(pixels_of(image))[0]
    assert len(found) == 6 * 8
    away = {
        by: (features_of(folder, np.array(Image.fromarray(image).resize((16, 12), by)))[1:] - found).norm()
        for by in (resample, other)
    }
    assert away[resample] < 0.1 * found.norm()
    assert away[resample] < 0.5 * away[other]


def test_the_loss_is_minus_the_mean_cosine_computed_by_hand(dino):
    term, lengths = repa(dino, hidden=12), [6, 15]
    generator = torch.Generator().manual_seed(0)
    hidden_ND, goals_NF = torch.randn(21, 12, generator=generator), torch.randn(21, 16, generator=generator)
    found = term.losses(hidden_ND, goals_NF, lengths)

    def linear(x, layer):
        return x @ layer.weight.detach().numpy().astype(np.float64).T + layer.bias.detach().numpy()

    def silu(x):
        return x / (1 + np.exp(-x))

    first, _, second, _, third = term.module
    assert [first.weight.shape, second.weight.shape, third.weight.shape] == [(24, 12), (24, 24), (16, 24)]
    y = linear(silu(linear(silu(linear(hidden_ND.double().numpy(), first)), second)), third)
    goal = goals_NF.double().numpy()
    cosine = (y * goal).sum(-1) / np.linalg.norm(y, axis=-1) / np.linalg.norm(goal, axis=-1)
    assert found.tolist() == pytest.approx([-cosine[:6].mean(), -cosine[6:].mean()], rel=1e-5)
    assert term.training_flops(21) == 6 * 21 * (12 * 24 + 24 * 24 + 24 * 16)


def test_the_gradient_reaches_the_projector_and_the_blocks_up_to_the_one_that_is_read(dino):
    model = denoiser()
    batch, _ = pack(samples(0, torch.float32))
    term = repa(dino, hidden=32)
    output, hidden = model.forward_ragged(batch, taps={1})
    assert torch.equal(output, model.forward_ragged(batch))
    assert list(hidden) == [1]
    goals = torch.cat([term.goals(pixels_of(photo(8 * h, 8 * w)))[0] for h, w in batch.grids.tolist()])
    losses = term.losses(hidden[1], goals, batch.image_lengths)
    assert len(losses) == SAMPLES
    losses.sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"img_in.weight", "txt_in.weight", "transformer_blocks.0.img_mlp.w2.weight"} <= moved
    assert not {name for name in moved if name.startswith(("transformer_blocks.1.", "norm_out", "proj_out"))}
    assert all(p.grad.abs().sum() > 0 for p in term.module.parameters())
    assert not any(p.requires_grad for p in term.goals._model.parameters())


@pytest.fixture
def with_repa(new_trainer, dino):
    """A fresh trainer with the term: `with_repa(state="…", weight=0.5, …, trainer={…})`."""
    width = new_trainer(state="sized").transformer.img_in.out_features

    def make(state, *, trainer=None, **options):
        return new_trainer(state=state, terms=[repa(dino, hidden=width, **options)], **(trainer or {}))

    return make


def mixed(trainer):
    """A pack of three images of two sizes, and packs of one image each."""
    planned = trainer.plan.pack(0)
    sizes = [(16, 24), (32, 16), (16, 24)]
    chosen = [replace(s, height=h, width=w) for s, (h, w) in zip(planned.samples, sizes, strict=False)]
    images = [torch.from_numpy(photo(h, w, seed)) for seed, (h, w) in enumerate(sizes)]

    def loaded(numbers):
        some = [chosen[n] for n in numbers], [images[n] for n in numbers]
        return LoadedPack(pack=planned, samples=some[0], images=some[1], bad=[])

    return loaded(range(3)), [loaded([n]) for n in range(3)]


def test_neighbours_do_not_change_a_samples_term(with_repa):
    trainer = with_repa("state")
    together, alone = mixed(trainer)
    found = trainer.named_losses(trainer.assemble(together))["loss_repa"]
    wanted = torch.cat([trainer.named_losses(trainer.assemble(one))["loss_repa"] for one in alone])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert found.std() > 1e-3


def test_in_bfloat16_the_term_is_nearly_the_same(with_repa):
    plain, half = with_repa("plain"), with_repa("half", trainer={"dtype": torch.bfloat16})
    losses = [t.named_losses(t.assemble(mixed(t)[0]))["loss_repa"] for t in (plain, half)]
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0.02)


def test_padding_takes_no_part(with_repa):
    plain, padded = with_repa("plain"), with_repa("padded", trainer={"fixed_size": True})
    losses = []
    for trainer in (plain, padded):
        batch = trainer.assemble(mixed(trainer)[0])
        losses.append(trainer.named_losses(batch)["loss_repa"])
    assert min(padded._room(batch)) > 0
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


def lines(trainer):
    return [json.loads(line) for line in (trainer.folder / METRICS).read_text().splitlines()]


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_it_is_learned_and_logged_until_its_step_and_its_flops_count(with_repa, new_trainer, few, progress):
    settings = {"images": few, "batch": BatchConfig(samples=8), "budget": Budget(steps=24)}
    trainer, plain = with_repa("state", until=20, trainer=settings), new_trainer(state="plain", **settings)
    trainer.run(progress)
    seen = lines(trainer)
    assert ["loss_repa" in line for line in seen] == [True] * 20 + [False] * 4
    assert ["grad_norm_repa" in line and line["grad_norm_repa"] > 0 for line in seen] == [True] * 20 + [False] * 4
    assert seen[19]["loss_repa"] < seen[0]["loss_repa"] - 0.2
    assert seen[0]["encoder_share"] > 0
    assert not any(name.startswith("repa") for name in trainer.ema.averages)
    plain.run(progress)
    other = lines(plain)
    assert seen[0]["loss"] == other[0]["loss"]  # comparable: the term is not in it
    assert seen[5]["loss"] != other[5]["loss"]
    tokens = trainer.counters.image_tokens / 24
    extra = trainer.terms[0].training_flops(tokens)
    assert seen[19]["flops"] - other[19]["flops"] == pytest.approx(20 * extra, rel=1e-6)
    assert seen[23]["flops"] - other[23]["flops"] == pytest.approx(20 * extra, rel=1e-6)


def test_without_weight_it_changes_no_bit(with_repa, new_trainer, progress):
    trainer, plain = with_repa("state", weight=0, trainer={"budget": Budget(steps=3)}), new_trainer(state="plain")
    plain.budget = Budget(steps=3)
    trainer.run(progress)
    plain.run(progress)
    assert "loss_repa" in lines(trainer)[0]
    assert [line["loss"] for line in lines(trainer)] == [line["loss"] for line in lines(plain)]
    assert same(trainer.transformer, plain.transformer)


def test_it_goes_on_bit_for_bit(with_repa, progress):
    settings = {"budget": Budget(steps=6)}
    whole = with_repa("whole", until=3, trainer=settings)
    whole.run(progress)
    progress.stop_asked = True
    for _ in range(4):  # a step each: the last of them is past the term's end
        with pytest.raises(Stopped):
            with_repa("part", until=3, trainer=settings).run(progress)
    progress.stop_asked = False
    end = with_repa("part", until=3, trainer=settings)
    end.run(progress)
    assert same(end.transformer, whole.transformer)
    assert same(end.terms[0].module, whole.terms[0].module)
    assert not same(end.terms[0].module, with_repa("fresh").terms[0].module)
    assert [line.get("loss_repa") for line in lines(end)] == [line.get("loss_repa") for line in lines(whole)]


def stage(folder, **changes):
    """A train stage's settings with the term."""
    term = {"type": "repa", "path": str(folder), "block": 1, "width": 24, **changes}
    return {
        "name": "model",
        "type": "train",
        "source": "dense",
        "model": {"type": "lens", "preset": "nano", "num_layers": 2},
        "budget": {"steps": 2},
        "batch": {"samples": 4, "packs_per_step": 2},
        "objective": {"terms": [term]},
        "watch": {"log_every": 1},
        "threads": 1,
    }


def test_the_finished_model_has_no_projector(run_stage, lens_registry, scenes, dino):
    config = lens_registry.parse("stages", stage(dino))
    folder, stats = run_stage(lens_registry, config, [scenes["dense"]])
    left_out = lens_registry.parse("stages", stage("nowhere", weight=0))
    plain, other = run_stage(lens_registry, left_out, [scenes["dense"]])
    found, wanted = (load_file(next((f / "transformer").glob("*.safetensors"))) for f in (folder, plain))
    assert found.keys() == wanted.keys()
    assert any(not torch.equal(found[name], wanted[name]) for name in found)
    assert stats["parameters"] == other["parameters"]
    assert stats["training_flops"] > other["training_flops"]
    assert not [file for file in folder.rglob("*") if "repa" in file.name]
    assert "loss_repa" not in (plain / METRICS).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 3}, "objective.terms.0.block: there is no block 3; the model has 2"),
        ({"path": "nowhere"}, "objective.terms.0.path: there is no folder"),
    ],
)
def test_a_term_that_does_not_fit(run_stage, lens_registry, scenes, dino, changes, message):
    config = lens_registry.parse("stages", stage(dino, **changes))
    with pytest.raises(ConfigError, match=message):
        run_stage(lens_registry, config, [scenes["dense"]])


def test_latents_have_no_pixels_to_look_at(run_stages, tmp_path, dino):
    made = [*DATA, {"name": "latents", "type": "encode", "source": "images"}]
    with pytest.raises(ConfigError, match="repa looks at pixels, and the latents in `source` are none") as caught:
        run_stages(tmp_path, [*made, {**stage(dino), "source": ["dense", "latents"]}])
    assert "\n" not in str(caught.value)


def test_a_model_without_patches_is_refused(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 8, "image_mean": MEAN, "image_std": STD}))
    with pytest.raises(ArtifactError, match="ResNetModel has no feature for each patch") as caught:
        patch_features(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_term_of_a_type():
    with pytest.raises(ValidationError, match="repa is there twice"):
        ObjectiveConfig(terms=[{"path": "a"}, {"path": "b"}])


def test_two_ranks_train_as_one(run_stages, tmp_path, dino):
    """With the third step, which has no term: the ranks then gather and reduce nothing of the projector."""
    stages = [*DATA, {**stage(dino, until=2), "budget": {"steps": 3}}]
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    run_stages(folders[0], stages)
    (folders[1] / "pipeline.yaml").write_text(yaml.safe_dump({"run": "run", "seed": 3, "stages": stages}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "lens_train", "pipeline.yaml"],
        cwd=folders[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    models = [folder / "run" / "model" for folder in folders]
    one, two = ([json.loads(line) for line in (m / METRICS).read_text().splitlines()] for m in models)
    assert ["loss_repa" in line for line in two] == [True, True, False]
    for alone, shared in zip(one, two, strict=True):
        for name in ("loss", "loss_repa", "grad_norm", "grad_norm_repa", "flops"):
            assert shared.get(name, 0) == pytest.approx(alone.get(name, 0), rel=1e-4)
    weights = [load_file(next(model.glob("transformer/*.safetensors"))) for model in models]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)
