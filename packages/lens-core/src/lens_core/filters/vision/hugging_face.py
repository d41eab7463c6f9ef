"""Vision models of transformers, in float32 on one device: safetensors only, no code of theirs is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

from lens_core.errors import ArtifactError, ConfigError
from lens_core.filters.vision.models import labels_of, model_files, model_hash, read_json
from lens_core.filters.vision.preprocess import Preprocessor

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

__all__ = ["Classifier", "Embedder"]

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class _Model:
    """A folder's model, its preprocessing, and its hash."""

    def __init__(self, folder: Path, *, auto: Any, device: str):
        self.config = read_json(folder / "config.json")
        self.hash = model_hash(model_files(folder))
        self._preprocess = Preprocessor.from_folder(folder)
        self._device = _device(device)
        try:
            model, loading = auto.from_pretrained(
                folder,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=torch.float32,
            )
        except Exception as error:
            # transformers raises what comes to hand: OSError, KeyError, SafetensorError, RuntimeError, …
            reason = " ".join(str(error).split())[:300]
            raise ArtifactError(f"{folder} holds no model that transformers can load: {reason}") from error
        missing = sorted(loading["missing_keys"])
        self._has_pooler = not any(name.startswith("pooler.") for name in missing)
        needed = [name for name in missing if not name.startswith("pooler.")]
        if needed:
            # transformers would fill them with random numbers: a base model loads as a classifier that guesses.
            raise ArtifactError(f"{folder} lacks weights, such as {needed[0]!r}: it is not trained for this task")
        self.model = model.to(self._device).eval()

    def pixel_values(self, pixels_HW3: np.ndarray) -> torch.Tensor:
        """[1, 3, height, width] on the model's device."""
        return torch.from_numpy(self._preprocess(pixels_HW3)).to(self._device)


class Classifier(_Model):
    """An `AutoModelForImageClassification`."""

    def __init__(self, folder: Path, *, device: str):
        super().__init__(folder, auto=transformers.AutoModelForImageClassification, device=device)
        self.labels = labels_of(self.config, int(self.model.config.num_labels))
        self.multi_label = self.config.get("problem_type") == "multi_label_classification"

    @torch.inference_mode()
    def __call__(self, pixels_HW3: np.ndarray) -> np.ndarray:
        """The logits: float32 [labels]."""
        logits = self.model(pixel_values=self.pixel_values(pixels_HW3)).logits
        return logits[0].float().cpu().numpy()  # type: ignore[no-any-return]


class Embedder(_Model):
    """An `AutoModel` for images: CLIP and its kin by their projected features, others by their pooled output."""

    def __init__(self, folder: Path, *, device: str):
        super().__init__(folder, auto=transformers.AutoModel, device=device)

    @torch.inference_mode()
    def __call__(self, pixels_HW3: np.ndarray) -> np.ndarray:
        """The features, of length one: float32 [size]."""
        values = self.pixel_values(pixels_HW3)
        if hasattr(self.model, "get_image_features"):
            output = self.model.get_image_features(pixel_values=values)
        else:
            output = self.model(pixel_values=values)
        features = self._pooled(output).flatten(1)[0].float()
        return torch.nn.functional.normalize(features, dim=0).cpu().numpy()  # type: ignore[no-any-return]

    def _pooled(self, output: Any) -> torch.Tensor:
        """The image's vector; of a model that was saved without its pooler, the first token."""
        if isinstance(output, torch.Tensor):
            return output
        pooled = getattr(output, "pooler_output", None)
        return pooled if pooled is not None and self._has_pooler else output.last_hidden_state[:, 0]  # type: ignore[no-any-return]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name!r}; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"the device {name!r} is not available: torch sees no GPU here; use auto or cpu")
    return device
