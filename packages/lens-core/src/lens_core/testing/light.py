"""Contracts of the kinds that need no torch: datasets, filters, captioners, rewriters, evaluators."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from lens_core.contracts import CaptionOutcome, ImageItem, Verdict, verdicts
from lens_core.testing.base import ComponentContract

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lens_core.config.base import ComponentConfig
    from lens_core.registry import Registry

__all__ = [
    "CaptionerContract",
    "DatasetContract",
    "EvaluatorContract",
    "FilterContract",
    "RewriterContract",
    "SafetyCheckerContract",
]

_STATUSES = {"ok", "refusal", "content-filter", "truncated", "empty", "schema-invalid", "transport", "bad-image"}


class DatasetContract(ComponentContract):
    """A source of images. Override `base` if relative paths in `config` need a folder to start at."""

    kind = "datasets"

    @pytest.fixture
    def base(self, tmp_path: Path) -> str:
        """The folder that relative paths start at."""
        return str(tmp_path)

    @pytest.fixture
    def dataset(self, lens_registry: Registry, parsed: ComponentConfig, base: str) -> Any:
        """The component under test."""
        return lens_registry.build(self.kind, parsed, base=base, seed=7)

    def test_two_passes_agree(self, dataset: Any) -> None:
        """Iterating twice yields the same names and bytes: keep no state between passes."""
        first = [(record.name, record.read()) for record in itertools.islice(dataset, 8)]
        assert first
        assert first == [(record.name, record.read()) for record in itertools.islice(dataset, 8)]

    def test_names_are_unique(self, dataset: Any) -> None:
        """A name is how a person finds an image again."""
        names = [record.name for record in itertools.islice(dataset, 64)]
        assert len(set(names)) == len(names)

    def test_images_decode(self, dataset: Any) -> None:
        """What the source yields are encoded images."""
        from lens_core.images import decode

        for record in itertools.islice(dataset, 4):
            assert decode(record.read()).ndim == 3

    def test_metadata_is_json(self, dataset: Any) -> None:
        """Metadata travels in a Parquet column as JSON."""
        for record in itertools.islice(dataset, 4):
            assert json.loads(json.dumps(dict(record.metadata))) == dict(record.metadata)

    def test_fingerprint_is_stable(self, dataset: Any) -> None:
        """The fingerprint decides whether `ingest` runs again: the same source gives the same text."""
        assert dataset.fingerprint() == dataset.fingerprint()
        assert isinstance(dataset.fingerprint(), str)


class FilterContract(ComponentContract):
    """Keeps an image or says why not."""

    kind = "filters"

    @pytest.fixture
    def filter(self, lens_registry: Registry, parsed: ComponentConfig) -> Any:
        """The component under test."""
        return lens_registry.build(self.kind, parsed)

    def test_verdict_is_stable(self, filter: Any, tiny_images: list[ImageItem]) -> None:
        """The same image gets the same verdict, with a reason in words if it drops: `check` changes nothing."""
        from lens_core.images import Candidate

        for item in tiny_images:
            verdicts = [filter.check(Candidate("x.png", item.data)) for _ in range(2)]
            assert verdicts[0] == verdicts[1]
            assert isinstance(verdicts[0], Verdict)
            assert verdicts[0].reason is None or verdicts[0].reason.strip()

    def test_scores_are_finite(self, filter: Any, tiny_images: list[ImageItem]) -> None:
        """Scores and thresholds are numbers that a table can hold and a person can sort by."""
        from lens_core.images import Candidate

        for item in tiny_images:
            verdict = filter.check(Candidate("x.png", item.data))
            assert all(math.isfinite(value) for value in (verdict.score, verdict.threshold) if value is not None)

    def test_what_was_kept_is_heard(self, filter: Any, tiny_images: list[ImageItem]) -> None:
        """A filter with a method `kept` takes what it has passed, and its verdicts stay verdicts."""
        from lens_core.images import Candidate

        for item in [*tiny_images, *tiny_images]:
            candidate = Candidate("x.png", item.data)
            if filter.check(candidate).reason is None and hasattr(filter, "kept"):
                filter.kept(candidate)
            assert isinstance(filter.check(candidate), Verdict)

    def test_garbage_does_not_crash(self, filter: Any) -> None:
        """Bytes that are no image get a reason or an `ImageError`, never another exception."""
        from lens_core.errors import ImageError
        from lens_core.images import Candidate

        try:
            reason = filter.check(Candidate("x.jpg", b"not an image")).reason
        except ImageError as error:
            reason = str(error)
        assert reason is None or reason.strip()


class CaptionerContract(ComponentContract):
    """Images to texts. Override `images` if the captioner needs more than pixels."""

    kind = "captioners"

    @pytest.fixture
    def images(self, tiny_images: list[ImageItem]) -> list[ImageItem]:
        """At least two different images that the captioner can caption."""
        return tiny_images

    @pytest.fixture
    def captioner(self, lens_registry: Registry, parsed: ComponentConfig) -> Iterator[Any]:
        """The component under test."""
        captioner = lens_registry.build(self.kind, parsed)
        yield captioner
        captioner.close()

    def test_one_outcome_per_image_in_order(self, captioner: Any, images: list[ImageItem]) -> None:
        """Return one `CaptionOutcome` per image, with its key, in the order given."""
        outcomes = captioner.caption(images)
        assert [outcome.key for outcome in outcomes] == [item.key for item in images]
        assert all(isinstance(outcome, CaptionOutcome) and outcome.status in _STATUSES for outcome in outcomes)
        assert any(outcome.status == "ok" for outcome in outcomes)

    def test_only_ok_carries_text(self, captioner: Any, images: list[ImageItem]) -> None:
        """A failed image has a detail and no text: nobody may train on half a caption."""
        for outcome in captioner.caption(images):
            assert bool(outcome.text) == (outcome.status == "ok")
            assert outcome.status == "ok" or outcome.detail

    def test_empty_batch(self, captioner: Any) -> None:
        """No images, no outcomes."""
        assert captioner.caption([]) == []

    def test_one_bad_image_spoils_nothing(self, captioner: Any, images: list[ImageItem]) -> None:
        """Bytes that are no image give an outcome of their own; the neighbours are captioned as if alone."""
        bad = ImageItem(key="0" * 64, data=b"not an image")
        outcomes = captioner.caption([images[0], bad, images[1]])
        assert [outcome.status for outcome in outcomes][::2] == ["ok", "ok"]
        assert outcomes[1].key == bad.key

    def test_same_image_same_text(self, captioner: Any, images: list[ImageItem]) -> None:
        """A captioner that declares itself deterministic repeats itself, also with other neighbours."""
        if captioner.deterministic:
            together = [outcome.text for outcome in captioner.caption(images)]
            alone = [captioner.caption([item])[0].text for item in images]
            assert together == alone

    def test_layers_are_named(self, captioner: Any, images: list[ImageItem]) -> None:
        """Several captions of an image belong to layers that the attribute `layers` names; others would be lost."""
        named = set(getattr(captioner, "layers", ()))
        for outcome in captioner.caption(images):
            assert len(outcome.layers) < 2 or set(outcome.layers) == named

    def test_provenance_is_flat(self, captioner: Any, images: list[ImageItem]) -> None:
        """Provenance is stored as a JSON object of texts and numbers."""
        for outcome in captioner.caption(images[:1]):
            assert all(isinstance(value, str | int | float) for value in outcome.provenance.values())

    def test_closing_twice(self, captioner: Any) -> None:
        """`close` may be called again."""
        captioner.close()
        captioner.close()


class RewriterContract(ComponentContract):
    """Prompts to longer prompts."""

    kind = "rewriters"
    prompts: tuple[str, ...] = ("a red circle", "", "xyzzy", "a very long prompt " * 50)

    @pytest.fixture
    def rewriter(self, lens_registry: Registry, parsed: ComponentConfig) -> Any:
        """The component under test."""
        return lens_registry.build(self.kind, parsed)

    def test_one_text_per_prompt(self, rewriter: Any) -> None:
        """One text per prompt, in order; none for none."""
        assert len(rewriter.rewrite(self.prompts)) == len(self.prompts)
        assert rewriter.rewrite([]) == []
        assert all(isinstance(text, str) for text in rewriter.rewrite(self.prompts))

    def test_same_seed_same_text(self, rewriter: Any) -> None:
        """A seed makes it repeatable."""
        assert rewriter.rewrite(self.prompts, seed=3) == rewriter.rewrite(self.prompts, seed=3)


class SafetyCheckerContract(ComponentContract):
    """Prompts and pictures, to a reason or to None. Give in `refused` examples of what must not pass."""

    kind = "safety_checkers"
    passed: tuple[str, ...] = ("a red circle", "", "Ein roter Kreis, \u00fcber ihm ein Stern", "word " * 500)
    refused: tuple[str, ...] = ()

    @pytest.fixture
    def checker(self, lens_registry: Registry, parsed: ComponentConfig) -> Any:
        """The component under test."""
        return lens_registry.build(self.kind, parsed)

    def test_prompts(self, checker: Any) -> None:
        """What is harmless passes, whatever its length; what is not has a reason that can be shown."""
        assert [checker.check_prompt(prompt) for prompt in self.passed] == [None] * len(self.passed)
        for prompt in self.refused:
            assert checker.check_prompt(prompt)

    def test_pictures(self, checker: Any) -> None:
        """A picture of any shape gets a verdict, and is not changed."""
        import numpy as np

        for shape in ((64, 64, 3), (16, 80, 3)):
            image_HW3 = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            before = image_HW3.copy()
            assert isinstance(checker.check_image(image_HW3), str | None)
            assert (image_HW3 == before).all()

    def test_threads(self, checker: Any) -> None:
        """A server asks from several threads; the verdicts stay the same."""
        from concurrent.futures import ThreadPoolExecutor

        prompts = [*self.passed, *self.refused] * 4
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(checker.check_prompt, prompts)) == [checker.check_prompt(x) for x in prompts]


class EvaluatorContract(ComponentContract):
    """Prompts and verdicts."""

    kind = "evaluators"

    @pytest.fixture
    def evaluator(self, lens_registry: Registry, parsed: ComponentConfig) -> Any:
        """The component under test."""
        return lens_registry.build(self.kind, parsed)

    def test_tasks_are_repeatable(self, evaluator: Any) -> None:
        """The same tasks in the same order, with unique ids, each with at least one prompt."""
        tasks = evaluator.tasks()
        assert tasks
        assert list(tasks) == list(evaluator.tasks())
        assert len({task.id for task in tasks}) == len(tasks)
        assert all(task.prompts for task in tasks)

    def test_verdicts_on_noise(self, evaluator: Any) -> None:
        """Any image gets a verdict for each skill of the task, noise too, and the same ones twice."""
        import numpy as np

        for task in evaluator.tasks()[:5]:
            shape = (task.height or 64, task.width or 64, 3)
            noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            score = evaluator.score(task, noise)
            given = verdicts(task, score)
            assert all(verdict in (True, False) for verdict in (score if isinstance(score, Sequence) else [score]))
            assert verdicts(task, evaluator.score(task, noise)) == given
