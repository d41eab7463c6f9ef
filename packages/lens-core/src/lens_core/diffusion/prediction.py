"""From the denoiser's output to a velocity.

Time t is 1 at pure noise; x_t = (1 - t)·x0 + t·noise; velocity v = noise - x0 = (x_t - x0) / t.

Suffixes: N image tokens, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lens_core.config.prediction import PredictionConfig

__all__ = ["target_velocity", "to_velocity"]


def to_velocity(prediction: PredictionConfig, output_NC: Tensor, x_NC: Tensor, t_N1: Tensor) -> Tensor:
    """The velocity [N, C] that an output at x_t stands for."""
    if prediction.type == "velocity":
        return output_NC
    return (x_NC - output_NC) / t_N1.clamp_min(prediction.t_floor)


def target_velocity(prediction: PredictionConfig, velocity_NC: Tensor, t_N1: Tensor) -> Tensor:
    """What `to_velocity` gives for the perfect output: the velocity, shortened where the floor is the divisor."""
    if prediction.type == "velocity":
        return velocity_NC
    return velocity_NC * (t_N1 / t_N1.clamp_min(prediction.t_floor))
