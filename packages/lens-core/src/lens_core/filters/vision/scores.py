"""From an image to a classifier's score for some labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lens_core.errors import ConfigError
from lens_core.filters.vision.models import load_classifier
from lens_core.images import DECODER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.contracts import Candidate
    from lens_core.filters.vision.config import LabelFilterConfig, Output

__all__ = ["LabelScore", "score"]


class LabelScore:
    """A classifier and the labels that matter.

    Args:
        config: names the model.
        labels: the labels that matter; none means the model's only output.

    Raises:
        ConfigError: the model does not know a label, or has several outputs and no label is named.
    """

    def __init__(self, config: LabelFilterConfig, labels: Sequence[str]):
        self._model = load_classifier(config.model, asked_by=config.type, device=config.device)
        known = self._model.labels
        unknown = [label for label in labels if label not in known]
        if unknown:
            what = f"there is no label {unknown[0]!r}"
            raise ConfigError(f"{config.type}: {what} in {config.model}; it has: {', '.join(known)}")
        if not labels and len(known) > 1:
            raise ConfigError(f"{config.type}: name one of the labels of {config.model}: {', '.join(known)}")
        self._columns = [known.index(label) for label in labels] or [0]
        self._output: Output = config.output
        if config.output == "auto":
            self._output = "sigmoid" if self._model.multi_label or len(known) == 1 else "softmax"

    def __call__(self, candidate: Candidate) -> float:
        """The score; the model's raw outputs are remembered, so other labels and bounds cost nothing later."""
        name = f"vision {self._model.hash} {DECODER}"
        raw = candidate.measure(name, lambda: self._model(candidate.pixels()).astype("<f4").tobytes())
        return score(np.frombuffer(raw, "<f4"), self._columns, self._output)


def score(outputs: np.ndarray, columns: Sequence[int], output: Output) -> float:
    """The score of some of the raw outputs: a probability, or with "value" the output itself.

    With softmax, one label excludes another: their probabilities add up. Otherwise the largest counts.
    """
    values = outputs.astype(np.float64)
    if output == "softmax":
        shares = np.exp(values - values.max())
        return float((shares / shares.sum())[list(columns)].sum())
    largest = float(values[list(columns)].max())
    if output == "sigmoid":
        return float(0.5 * (1 + np.tanh(0.5 * largest)))
    return largest
