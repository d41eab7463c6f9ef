"""What pictures are compared by."""

from __future__ import annotations

import numpy as np
import pytest

from core.vision_models import clip, vit
from lens_core.errors import ConfigError
from lens_train.evaluation.features import features_by


def test_pixels_are_means_of_a_grid():
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    features = features_by("pixels", device="cpu", asked_by="distance")(image)
    means = image.astype(float).reshape(8, 4, 8, 6, 3).mean((1, 3)) / 255
    assert features.shape == (192,)
    assert features == pytest.approx(means.ravel(), abs=1.01 / 255)


@pytest.mark.parametrize("make", [vit, clip])
def test_a_models_features_have_a_mean_square_of_one(tmp_path, make):
    features_of = features_by(str(make(tmp_path)), device="cpu", asked_by="distance")
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    one, other = (features_of(image) for image in noise)
    assert (one**2).mean() == pytest.approx(1)
    assert one.dtype == np.float64
    assert not np.allclose(one, other)
    assert np.array_equal(features_of(noise[0]), one)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"how-like: there is no model at '.*dino'"):
        features_by(str(tmp_path / "dino"), device="cpu", asked_by="how-like")
