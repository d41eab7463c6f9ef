"""An engine in the test's own process, which takes its turns when it is told to."""

from __future__ import annotations

import numpy as np
import torch

from lens_core.diffusion import Request, load_model_folder
from lens_core.diffusion.requests import Start
from lens_core.diffusion.text_to_image import generate
from lens_core.diffusion.weights.lora import load_lora
from lens_core.registry import load_registry
from lens_serve.engine import calibration
from lens_serve.engine.cost import CostModel
from lens_serve.engine.loaded import EngineModel
from lens_serve.engine.loop import Engine
from lens_serve.engine.messages import StartPicture, ToEngine
from lens_serve.engine.wire import Channel
from serve.engine.process import Parent


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def drawn_alone(folder, draw, lora=None):
    """What `generate` makes of a job."""
    model = load_model_folder(str(folder))
    if lora:
        load_lora(model.transformer, lora, scale=draw.lora_scale)
    sampler = model.registry.parse("samplers", {**model.sampler.model_dump(), "steps": draw.steps})
    start = None
    if draw.start:
        pixels = np.frombuffer(draw.start.pixels, np.uint8).reshape(draw.height, draw.width, 3)
        mask = draw.start.mask and np.frombuffer(draw.start.mask, np.uint8).reshape(draw.height, draw.width) >= 128
        start = Start.of(pixels, strength=draw.start.strength, mask_HW=mask)
    request = Request(
        prompt=draw.prompt,
        negative=draw.negative,
        height=draw.height,
        width=draw.width,
        seed=draw.seed,
        index=draw.index,
        start=start,
    )
    return generate(model, [request], sampler=sampler, guidance=draw.guidance)[0]


MASK = np.zeros((16, 16), np.uint8)
MASK[:, 5:] = 255
START = StartPicture(pixels=picture(16, 16).tobytes(), strength=0.7)
INPAINT = StartPicture(pixels=picture(16, 16).tobytes(), strength=1.0, mask=MASK.tobytes())
KINDS = [
    {},
    {"prompt": "", "guidance": 1.0, "negative": "not asked for"},
    {"prompt": "two blue squares", "negative": "grey", "height": 8, "width": 24, "seed": 3, "index": 2},
    {"steps": 7, "guidance": 1.0, "height": 32, "width": 12},
    {"start": START},
    {"start": INPAINT, "steps": 4},
    {"lora": "ink", "lora_scale": 0.8},
]


def load(settings):
    """The models of settings, by name."""
    registry = load_registry()
    return {served.name: EngineModel.load(served, registry, torch.device("cpu")) for served in settings.models}


class Bench(Parent):
    """An engine and its parent; a context manager.

    Args:
        settings: of the server.
        models: what `load` made of them, if several benches share them.
    """

    def __init__(self, settings, models=None, *, slots=4, slot_bytes=64 * 64 * 3):
        super().__init__(slots=slots, slot_bytes=slot_bytes)
        self.models = models or load(settings)
        costs, knees = {}, {}
        for name, model in self.models.items():
            assumed, knees[name] = calibration.assumed(model.loaded)
            costs[name] = CostModel(assumed)
        self.end = Channel(self.theirs, ToEngine)
        self.engine = Engine(self.end, self.slots, self.models, costs, knees, settings.engine)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        self.end.close()
        self.slots.close()

    def work(self):
        """One turn of the engine, between hearing and being heard."""
        self.engine.hear(0.0)
        self.engine.turn()
        self.hear(0.0)

    @property
    def rests(self):
        """Whether nothing is left of any job."""
        engine = self.engine
        return not (engine.jobs or len(engine.scheduler) or engine._calls._packs or engine.outbox.taken)
