"""Image classifiers as ONNX files: one input of pixels, the first output is taken; no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from lens_core.errors import ArtifactError
from lens_core.filters.vision.models import labels_of, model_files, model_hash, read_json
from lens_core.filters.vision.preprocess import Preprocessor

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Classifier"]


class Classifier:
    """An ONNX file with preprocessor_config.json and, for the labels' names, config.json beside it."""

    def __init__(self, file: Path, *, device: str):
        config_file = file.with_name("config.json")
        config = read_json(config_file) if config_file.exists() else {}
        self.hash = model_hash(model_files(file))
        self._preprocess = Preprocessor.from_folder(file.parent)
        wanted = ["CPUExecutionProvider"]
        if device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            wanted.insert(0, "CUDAExecutionProvider")
        try:
            self._session = onnxruntime.InferenceSession(str(file), providers=wanted)
        except Exception as error:  # onnxruntime's errors share no base class
            raise ArtifactError(f"{file} cannot be run: {' '.join(str(error).split())[:300]}") from error
        self._input = self._session.get_inputs()[0].name
        count = self._session.get_outputs()[0].shape[-1]
        if not isinstance(count, int):
            raise ArtifactError(f"{file}: the number of outputs is not fixed")
        self.labels = labels_of(config, count)
        self.multi_label = config.get("problem_type") == "multi_label_classification"

    def __call__(self, pixels_HW3: np.ndarray) -> np.ndarray:
        """The raw outputs: float32 [labels]."""
        outputs = self._session.run(None, {self._input: self._preprocess(pixels_HW3)})
        return np.asarray(outputs[0], np.float32).reshape(-1)
