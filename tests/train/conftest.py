"""Real artefacts, a handful of scenes, and a trainer small enough to run in a moment."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lens_core.config.base import config_hash
from lens_core.pipeline.progress import Progress
from lens_core.storage.artifacts import MANIFEST, OutputFolder, load_artifact, manifest_hash


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny tensors gain nothing from more threads, and others use the machine too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def on_a_small_disk():
    """Run a program with a folder on a disk of few megabytes, which the kernel lets us mount for ourselves.

    The disk is seen by the program alone, and is gone with it. What it prints is read as JSON.
    """

    def run(program, folder, *, megabytes=4):
        script = f'mount -t tmpfs -o size={megabytes}m tmpfs "$1" && shift && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", script, "sh", folder]
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
            pytest.skip("the system lets this user mount nothing (unshare -rm)")
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, sys.executable, program, folder],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture
def progress():
    """Progress that nobody watches; what it says is in `progress.said`."""
    said = io.StringIO()
    quiet = Progress(stream=said, live=False)
    quiet.said = said
    return quiet


def publisher(folder):
    """A function that writes artefacts into a folder, as the runner would."""

    def write(type_, name, fill, *, parents=(), config=None, stats=None):
        output = OutputFolder(str(folder / name), folder / "scratch")
        fill(output)
        files = sorted(output.files.values(), key=lambda entry: entry.path)
        config = {"type": "made-by-a-test", "name": name, **(config or {})}
        parents = list(parents)
        output.write_json(
            MANIFEST,
            {
                "format_version": 1,
                "type": type_,
                "name": name,
                "hash": manifest_hash(type_, files, config_hash(config), [parent.hash for parent in parents]),
                "seconds": 1.5,
                "seed": 0,
                "config": config,
                "parents": [
                    {"name": made.name, "type": made.type, "hash": made.hash, "url": made.url} for made in parents
                ],
                "stats": stats or {},
                "files": [vars(entry) for entry in files],
            },
        )
        return load_artifact(output.url)

    return write


@pytest.fixture
def publish(tmp_path):
    """Write an artefact: `publish("captions", "dense", fill, parents=[images])`, where `fill(output)` writes files."""
    return publisher(tmp_path / "run")


@pytest.fixture(scope="module")
def publish_for_all(tmp_path_factory):
    """Like `publish`, for artefacts that the tests of a module share."""
    return publisher(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def run_stage(tmp_path_factory):
    """Run one stage outside a pipeline: `run_stage(registry, config, inputs)` gives its output folder and stats."""
    from train.contexts import context_in

    def run(registry, config, inputs, progress=None):
        folder = tmp_path_factory.mktemp(config.name)
        context = context_in(folder, registry, inputs, name=config.name, progress=progress)
        stats = registry.spec("stages", config.type).load_target()(config, context)
        return folder / config.name, stats

    return run


@pytest.fixture(scope="session")
def run_stages(lens_registry):
    """Run a pipeline in this process: `run_stages(folder, [{...}, ...])` gives the artefacts by name."""

    def run(folder, stages, seed=3):
        import yaml

        from lens_core.config.pipeline import load_pipeline
        from lens_core.pipeline.runner import run_pipeline

        file = folder / "pipeline.yaml"
        file.write_text(yaml.safe_dump({"run": str(folder / "run"), "seed": seed, "stages": stages}))
        pipeline = load_pipeline(str(file), lens_registry)
        return run_pipeline(pipeline, lens_registry, progress=Progress(stream=io.StringIO(), live=False))

    return run


@pytest.fixture(scope="session")
def scenes(run_stages, tmp_path_factory):
    """24 scenes with a layer of captions in each of two styles: artefacts `images`, `brief`, `dense`."""
    styles = [
        {"name": style, "type": "caption", "source": "images", "captioner": {"type": "scene-graph", "style": style}}
        for style in ("brief", "dense")
    ]
    images = {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 24}}
    return run_stages(tmp_path_factory.mktemp("scenes"), [images, *styles])


@pytest.fixture(scope="session")
def data(scenes, lens_registry, tmp_path_factory):
    """The scenes and their dense captions, as the trainer takes them."""
    return training_set(scenes["dense"], lens_registry, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def few(run_stages, lens_registry, tmp_path_factory):
    """Eight scenes."""
    images = {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 8}}
    captions = {"name": "dense", "type": "caption", "source": "images", "captioner": {"type": "scene-graph"}}
    artifacts = run_stages(tmp_path_factory.mktemp("few"), [images, captions])
    return training_set(artifacts["dense"], lens_registry, tmp_path_factory.mktemp("few-data"))


def training_set(captions, registry, folder, *, image_size=None, memory_bytes=1e9, layers=None, validation=None):
    """Open a set of captioned images, with the tokens of a small text encoder fitted to them."""
    from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder
    from lens_core.storage.captions import read_texts
    from lens_train.data.pictures import images_of
    from lens_train.data.training_set import open_training_set
    from lens_train.parallel.world import World

    texts = (text for _, text in read_texts(captions, layers=layers))
    return open_training_set(
        folder / "manifest",
        images_of(captions, image_size=image_size, stride=8, seed=3),
        captions,
        layers=layers,
        memory_bytes=memory_bytes,
        tokenize=SmallTextEncoder.fit(registry.parse("text_encoders", "small"), texts, seed=3).tokenize,
        on_image=lambda done, total: None,
        world=World(device=torch.device("cpu")),
        validation=validation,
        seed=3,
    )


@pytest.fixture
def new_trainer(lens_registry, tmp_path, data):
    """A fresh trainer of a one-block model; a trainer with the same `state` goes on where that one stopped."""
    from lens_core.config.prediction import PredictionConfig
    from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder
    from lens_train.checkpoint.store import CheckpointStore
    from lens_train.data.text import Captions
    from lens_train.loop.budget import Budget
    from lens_train.loop.trainer import Trainer
    from lens_train.objective.config import ObjectiveConfig
    from lens_train.optim.config import OptimizerConfig
    from lens_train.parallel.world import World
    from lens_train.planning.build import make_plan
    from lens_train.planning.config import BatchConfig
    from lens_train.planning.costs import CostModel
    from lens_train.planning.samples import SampleSource
    from lens_train.watch.config import WatchConfig

    def make(*, state="state", images=data, encoder_class=SmallTextEncoder, budget=None, batch=None, **options):
        registry, seed = lens_registry, options.get("seed", 3)
        autoencoder = registry.build("autoencoders", registry.parse("autoencoders", "pixels"))
        manifest = images.manifest
        texts = [manifest.caption_text(row) for row in range(len(manifest.captions))]
        encoder = encoder_class.fit(registry.parse("text_encoders", "small"), texts, seed=3)
        config = registry.parse("models", {"type": "lens", "preset": "nano", "num_layers": 1})
        transformer = registry.build(
            "models", config, in_channels=autoencoder.channels, enc_hidden_dim=encoder.width, num_text_layers=1
        )
        transformer.init_weights(3)
        folder = tmp_path / state
        folder.mkdir(exist_ok=True)
        world = World(device=torch.device("cpu"))
        batch = batch or BatchConfig(samples=4)
        objective = options.pop("objective", ObjectiveConfig())

        def flops(images, texts):
            return transformer.training_flops(images, texts, text_gradient=True) + encoder.training_flops(texts)

        settings = {
            "optimizer": OptimizerConfig(),
            "ema_decay": 0.9,
            "dtype": torch.float32,
            "seed": 3,
            "save_every_s": 1e9,
            "watch": WatchConfig(log_every=options.pop("log_every", 1)),
            "workers": 0,
            "max_bad_samples": 0,
            **options,
        }
        return Trainer(
            transformer=transformer,
            captions=Captions(encoder, cache_bytes=0),
            autoencoder=autoencoder,
            manifest=manifest,
            plan=make_plan(
                batch,
                SampleSource(
                    manifest=manifest,
                    costs=CostModel.fit(lambda n, m: flops([n], [m])),
                    stride=autoencoder.stride,
                    seed=seed,
                    caption_dropout=objective.caption_dropout,
                ),
            ),
            source=images.source,
            sides=[32],
            flops=flops,
            packs_per_step=batch.packs_per_step,
            objective=objective,
            prediction=objective.prediction or PredictionConfig(type="x"),
            budget=budget or Budget(steps=10),
            world=world,
            store=CheckpointStore(folder / "checkpoints", world),
            folder=folder,
            **settings,
        )

    return make
