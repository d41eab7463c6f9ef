"""Pictures and scores by a model whose weights lie on two ranks.

    torchrun --nproc-per-node 2 two_ranks.py FOLDER

Each rank leaves its pictures in FOLDER/rank-R.safetensors, and in FOLDER/rank-R.json how often it called the denoiser,
how often it judged, and the scores.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder
from lens_core.diffusion.text_to_image import Request
from lens_core.registry import load_registry
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.shard import forget_gathered, shard
from lens_train.parallel.world import World
from lens_train.stages.train.parts import Parts
from lens_train.watch.config import EvaluationConfig
from lens_train.watch.drawing import Drawer
from lens_train.watch.evaluation import Evaluation

STEPS = 2
PROMPTS = ("a red circle", "", "two blue squares beside a green triangle", "a yellow ring")


def requests(count):
    """Pictures of several sizes, some without a word."""
    return [
        Request(prompt=PROMPTS[i % len(PROMPTS)], height=16, width=16 + 8 * (i % 3), seed=7, index=i)
        for i in range(count)
    ]


class Parity:
    """Asks as another evaluator, wants the bytes of a picture to add up to an even number, and counts its verdicts."""

    def __init__(self, evaluator):
        self.tasks = evaluator.tasks
        self.judged = 0

    def score(self, task, image):
        self.judged += 1
        return int(image.sum()) % 2 == 0


class Model:
    """A model in training, which draws.

    `calls` counts those of the denoiser.
    """

    def __init__(self, world):
        registry = self.registry = load_registry()
        autoencoder = registry.build("autoencoders", registry.parse("autoencoders", "pixels"))
        encoder = SmallTextEncoder.fit(registry.parse("text_encoders", "small"), PROMPTS, seed=3)
        config = registry.parse("models", {"type": "lens", "preset": "nano", "num_layers": 2, "num_attention_heads": 1})
        transformer = registry.build(
            "models", config, in_channels=autoencoder.channels, enc_hidden_dim=encoder.width, num_text_layers=1
        )
        transformer.init_weights(3)
        generator = torch.Generator().manual_seed(3)
        for parameter in transformer.parameters():
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        self.modules = (transformer, encoder)
        for module in self.modules:
            shard(module, world, ParallelConfig())
        parts = Parts(
            transformer=transformer,
            text_encoder=encoder,
            autoencoder=autoencoder,
            model=config,
            prediction=PredictionConfig(type="x"),
            sampler=registry.parse("samplers", {"type": "flow-euler", "steps": STEPS}),
            guidance=3.0,
            guidance_rescale=False,
        )
        self.calls = 0
        transformer.transformer_blocks[0].register_forward_hook(self._count)
        self.draw = Drawer(parts, world, dtype=torch.float32, image_size=(16, 16), registry=registry)

    def _count(self, *_):
        self.calls += 1

    def pictures(self, count):
        """uint8 [height, width, 3] of each."""
        with torch.no_grad():
            images = self.draw(requests(count))
            forget_gathered(self.modules)
        return [torch.from_numpy(image) for image in images]

    def scores(self):
        """What an evaluator finds, and how often it judged here."""
        settings = {"type": "scenes", "prompts_per_skill": 9, "skills": ["single", "count"], "styles": ["dense"]}
        evaluator = Parity(self.registry.build("evaluators", self.registry.parse("evaluators", settings)))
        with torch.no_grad():
            seen = Evaluation(self.draw, evaluator, EvaluationConfig(evaluator=settings)).look(1)
            forget_gathered(self.modules)
        return seen, evaluator.judged


def main(folder):
    world = World.join(torch.device("cpu"), timeout_s=60)
    torch.set_num_threads(1)
    model, calls, pictures = Model(world), [], {}
    for count in (40, 33, 3):
        before = model.calls
        images = model.pictures(count)
        pictures |= {f"{count}/{number}": image for number, image in enumerate(images)}
        calls.append(model.calls - before)
    seen, judged = model.scores()
    save_file(pictures, folder / f"rank-{world.rank}.safetensors")
    (folder / f"rank-{world.rank}.json").write_text(json.dumps({"calls": calls, "seen": seen, "judged": judged}))
    world.barrier("the end")
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
