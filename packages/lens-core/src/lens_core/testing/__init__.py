"""Contracts as tests: inherit the class of your kind, name your component, and get a suite.

    from lens_core.testing import CaptionerContract

    class TestAcme(CaptionerContract):
        name = "acme"
        config = {"greeting": "hello"}

The component is looked up in the installed plugins, so the suite also proves that your entry point works. Contract
tests are not overridden; if one cannot hold for you, mark it `xfail` with a reason.
"""

from lens_core.testing.base import ComponentContract
from lens_core.testing.diffusion import AutoencoderContract, ModelContract, SamplerContract, TextEncoderContract
from lens_core.testing.light import (
    CaptionerContract,
    DatasetContract,
    EvaluatorContract,
    FilterContract,
    RewriterContract,
    SafetyCheckerContract,
)
from lens_core.testing.stages import StageContract

__all__ = [
    "AutoencoderContract",
    "CaptionerContract",
    "ComponentContract",
    "DatasetContract",
    "EvaluatorContract",
    "FilterContract",
    "ModelContract",
    "RewriterContract",
    "SafetyCheckerContract",
    "SamplerContract",
    "StageContract",
    "TextEncoderContract",
]
