"""`lens plan` on every recipe, and its numbers against arithmetic of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lens_core.config.pipeline import load_pipeline
from lens_core.diffusion import LensTransformer2DModel
from lens_core.diffusion.flops import denoiser_flops
from lens_train.estimate.plan import plan_stages

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


def planned(registry, name, *overrides, **options):
    file = next(recipe for recipe in RECIPES if recipe.stem == name)
    settings = {"ranks": [1, 8, 64, 512], "peak": 989e12, "mfu": 0.4, "text_tokens": 200, "side": 512, **options}
    (plan,) = plan_stages(load_pipeline(str(file), registry, overrides), registry, **settings)
    return plan


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_are_valid_and_can_be_planned(recipe, lens):
    assert lens("check", str(recipe)).returncode == 0
    done = lens("plan", str(recipe), "--gpus", "1,2", "--side", "32", "--json")
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads(done.stdout)
    assert [row["gpus"] for row in plan["rows"]] == [1, 2]
    assert plan["flops"] > 0
    table = lens("plan", str(recipe), "--side", "32")
    assert f"{plan['parameters']:,} parameters" in table.stdout


def test_the_papers_first_stage(lens_registry):
    """The released parameters; 3072 images a step; the run's FLOPs as the study has them."""
    plan = planned(lens_registry, "lens-3.8b-stage1")
    assert plan.parameters == plan.trained == 4_104_225_152
    assert plan.images == 3072
    with torch.device("meta"):
        config = LensTransformer2DModel().config
    assert plan.flops == pytest.approx(3072 * denoiser_flops(config, [1024], [200]))
    assert plan.steps == pytest.approx(400_000)
    eight = plan.rows[1]
    assert eight.seconds == pytest.approx(plan.flops / (8 * 0.4 * 989e12))
    assert eight.gpu_hours == pytest.approx(400_000 * plan.flops / (0.4 * 989e12) / 3600)
    # 4 weights, 4 gradients, 8 AdamW, 4 EMA bytes a parameter over eight, and what is gathered of two blocks. No
    # gradient reaches these parts of the last block's text half: the way out, the MLP, the weight of the norm before.
    with torch.device("meta"):
        block = LensTransformer2DModel(num_layers=1).transformer_blocks[0]
    idle = (block.attn.to_add_out, block.txt_mlp, block.txt_norm2)
    unreached = sum(p.numel() for part in idle for p in part.parameters())
    gathered = 2 * (4_104_225_152 - 46 * sum(p.numel() for p in block.parameters()))
    assert eight.state_bytes == pytest.approx((20 * 4_104_225_152 - 12 * unreached) / 8 + gathered, rel=1e-6)
    assert "cannot be split among 512" in plan.rows[3].problem
    assert not eight.problem


@pytest.mark.parametrize("kind", ["flops", "steps", "samples", "tokens", "minutes"])
def test_every_kind_of_budget_is_steps(lens_registry, kind):
    plan = planned(lens_registry, "lora", f"model.budget={{{kind}: 1000000}}", ranks=[1])
    a_step = {
        "flops": plan.flops,
        "steps": 1,
        "samples": plan.images,
        "tokens": plan.image_tokens + plan.text_tokens,
        "minutes": plan.rows[0].seconds / 60,
    }
    assert plan.steps == pytest.approx(1e6 / a_step[kind])


def test_a_plan_of_buckets_whose_sides_are_no_sizes_of_its_own(lens_registry):
    """A size trains in the bucket of about its area, as in the plan itself."""
    plan = planned(
        lens_registry,
        "lens-3.8b-stage1",
        "stages.model.image_size=[512, 768]",
        "stages.model.batch={plan: buckets, buckets: {512: 24, 768: 10}, packs_per_step: 2}",
    )
    assert plan.images == 2 * 24
    assert plan.image_tokens == 2 * 24 * (627 // 16) ** 2  # about 32 x 48


def test_a_model_of_a_plugin_is_refused_in_one_line(lens):
    done = lens("plan", str(next(r for r in RECIPES if r.stem == "quickstart")), "--set", "stages.model.model=acme-mlp")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == "lens: stages.model.model: lens plan knows the model 'lens' only, not 'acme-mlp'"


def test_a_lora_is_cheaper_than_every_weight(lens_registry):
    lora, full = (planned(lens_registry, name) for name in ("lora", "finetune"))
    assert lora.trained < lora.parameters / 20
    assert lora.flops / lora.images < 0.85 * full.flops / full.images
    assert lora.rows[0].state_bytes < full.rows[0].state_bytes / 2


def test_activation_checkpointing_keeps_less(lens_registry):
    kept = [
        planned(lens_registry, "finetune", f"stages.model.parallel.activation_checkpointing={policy}", ranks=[1])
        .rows[0]
        .activation_bytes
        for policy in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == pytest.approx(2 * 2 * (4096 + 200) * 48 * (15 * 1536 + 4 * 4096))


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--gpus", "1,x"), "--gpus takes numbers"), (("--gpu", "H9"), "the peak of 'H9' is not known")],
)
def test_wrong_options(lens, options, words):
    done = lens("plan", str(RECIPES[0]), *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
