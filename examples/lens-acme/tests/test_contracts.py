"""Lens ships what it asks of each kind as test classes; naming a component runs them all."""

from lens_core.testing import CaptionerContract, DatasetContract, ModelContract, SamplerContract


class TestPalette(CaptionerContract):
    name = "acme-palette"


class TestStripes(DatasetContract):
    name = "acme-stripes"
    config = {"count": 5}


class TestMlp(ModelContract):
    name = "acme-mlp"


class TestCosine(SamplerContract):
    name = "acme-cosine"
