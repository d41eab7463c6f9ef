"""An object detector of transformers: class names of COCO to boxes in a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from PIL import Image

from lens_core.diffusion.device import pick_device
from lens_core.errors import ArtifactError, ConfigError
from lens_train.evaluation.geneval.rules import Detection

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from lens_core.config.devices import DeviceName

__all__ = ["MAX_OBJECTS", "ObjectDetector"]

MAX_OBJECTS = 16
"""Of a class in a picture."""

_ALSO_CALLED = {
    "airplane": "aeroplane",
    "computer keyboard": "keyboard",
    "computer mouse": "mouse",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
    "tv remote": "remote",
}
"""The classes of COCO that GenEval, or some detectors, call otherwise."""

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class ObjectDetector:
    """A frozen detector.

    Args:
        folder: of an `AutoModelForObjectDetection` with its image processor; nothing is loaded from elsewhere.
        device: where it runs.

    Raises:
        ConfigError: there is no such folder.
        ArtifactError: it holds no detector.
    """

    def __init__(self, folder: Path, *, device: DeviceName):
        if not folder.is_dir():
            raise ConfigError(f"geneval: there is no detector at {str(folder)!r}; give a folder on this machine")
        self._folder = folder
        self._device = pick_device(device)
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            # Pillow is everywhere; torchvision is not, and gives other pixels.
            self._processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **local)
            model, loading = transformers.AutoModelForObjectDetection.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **local
            )
        except Exception as error:  # transformers raises what comes to hand
            reason = " ".join(str(error).split())[:300]
            raise ArtifactError(f"{folder} holds no object detector that transformers can load: {reason}") from error
        if missing := sorted(loading["missing_keys"]):
            # They would be random numbers.
            raise ArtifactError(f"{folder} lacks weights, such as {missing[0]!r}: it is no trained object detector")
        if not hasattr(self._processor, "post_process_object_detection"):
            raise ArtifactError(f"{folder}: {type(self._processor).__name__} does not tell boxes from its outputs")
        self._model: Any = model.to(self._device).eval().requires_grad_(False)
        self._labels = {label: number for number, label in self._model.config.id2label.items()}

    def knows(self, name: str) -> bool:
        """Whether it has a class of that name, or of another name for the same."""
        return self._label(name) is not None

    @torch.inference_mode()
    def __call__(self, image_HW3: np.ndarray, names: set[str], *, threshold: float) -> dict[str, list[Detection]]:
        """The detections of each of these classes, the surest first; `MAX_OBJECTS` of a class at most."""
        inputs = self._processor(images=Image.fromarray(image_HW3), return_tensors="pt").to(self._device)
        outputs = self._model(**inputs)
        (seen,) = self._processor.post_process_object_detection(
            outputs, threshold=threshold, target_sizes=[image_HW3.shape[:2]]
        )
        numbers, scores, boxes = (seen[name].tolist() for name in ("labels", "scores", "boxes"))
        found: dict[str, list[Detection]] = {}
        for name in names:
            own = [
                Detection(tuple(box), score)
                for number, score, box in zip(numbers, scores, boxes, strict=True)
                if number == self._label(name)
            ]
            found[name] = sorted(own, key=lambda one: -one.confidence)[:MAX_OBJECTS]
        return found

    def _label(self, name: str) -> int | None:
        return self._labels.get(name, self._labels.get(_ALSO_CALLED.get(name, name)))
