"""Settings of the batch plan, and the plan that they make."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lens_train.planning.buckets import BucketPlan
from lens_train.planning.build import make_plan
from lens_train.planning.config import BatchConfig, SizesConfig
from lens_train.planning.ragged import RaggedPlan
from train.planning.conftest import source_of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give exactly one of samples, tokens and flops, not none"),
        ({"samples": 4, "tokens": 9}, "give exactly one of samples, tokens and flops, not samples and tokens"),
        ({"samples": 4, "buckets": {512: 24}}, "not samples and buckets"),
        ({"plan": "buckets"}, "the plan 'buckets' takes its sizes from the option buckets"),
        ({"plan": "buckets", "samples": 4}, "the plan 'buckets' takes its sizes from the option buckets"),
        ({"plan": "buckets", "buckets": {512: 24}, "fixed_size": True}, "fixed_size is for the plan 'ragged'"),
        ({"plan": "buckets", "buckets": {}}, "at least 1 item"),
        ({"samples": 0}, "greater than 0"),
        ({"sample": 4}, "did you mean 'samples'"),
    ],
)
def test_settings_that_make_no_plan(options, message):
    with pytest.raises(ValidationError, match=message):
        BatchConfig(**options)


@pytest.mark.parametrize("bases", [{}, {512: 0}, {3: 1}])
def test_bases_that_make_no_rule(bases):
    with pytest.raises(ValidationError):
        SizesConfig(bases=bases)


def test_settings_make_plans(mixed):
    source = source_of(mixed)
    for options in ({"samples": 8}, {"tokens": 9_000}, {"flops": 1e9}):
        plan = make_plan(BatchConfig(**options), source)
        assert isinstance(plan, RaggedPlan)
        assert plan.pack(4) == RaggedPlan(source, **options).pack(4)
    config = BatchConfig.model_validate({"plan": "buckets", "buckets": {"512": 24, "768": 10, "1024": 6}})
    plan = make_plan(config, source)
    assert isinstance(plan, BucketPlan)
    assert plan.pack(4) == BucketPlan(source, {512: 24, 768: 10, 1024: 6}).pack(4)
