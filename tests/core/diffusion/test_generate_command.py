"""`lens generate`: what it refuses before it loads a model, in one line."""

from __future__ import annotations

import inspect

import pytest

from lens_core.cli.generate import generate_file
from lens_core.errors import ConfigError


def refused(**options):
    others = dict.fromkeys(inspect.signature(generate_file).parameters)
    with pytest.raises(ConfigError) as caught:
        list(generate_file(**others | {"prompt": "x", "model": "model", "output": "x.png", "seed": 0} | options))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_secret_would_go_into_the_receipt():
    message = refused(model="s3://me:secret@bucket/model")
    assert message == "--model: a URL must not carry credentials; set them in the environment"


def test_a_rewriter_that_needs_options():
    assert refused(rewriter="openai").startswith("the rewriter's model: field required")


def test_a_sampler_that_does_not_take_so_many_steps(saved_model):
    with pytest.raises(ConfigError, match="the sampler's steps: input should be less than or equal to 1000"):
        saved_model[0].chosen_sampler(steps=5000)
