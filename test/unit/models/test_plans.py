"""What is known of transformers by class agrees with diffusers' classes."""

from __future__ import annotations

import diffusers
import pytest

from fakes import transformers_zoo as zoo
from safelight.errors import ConfigError
from safelight.models import plans

MENDED = {"LTX2VideoTransformer3DModel"}
"""Classes whose plan in diffusers leaves something out."""


@pytest.mark.parametrize("name", plans.TRANSFORMERS)
def test_we_bring_a_plan_exactly_where_diffusers_has_none(name: str) -> None:
    ours = plans.TRANSFORMERS[name].plan.modules
    theirs = getattr(diffusers, name)._cp_plan
    assert (ours is None) is (theirs is not None and name not in MENDED)


def test_diffusers_plan_for_ltx2_still_forgets_positions() -> None:
    """Of the attention between video and sound; when it does not, ours can go."""
    assert "cross_attn_rope" not in diffusers.LTX2VideoTransformer3DModel._cp_plan


def test_every_class_is_compared_with_one_rank() -> None:
    assert {type(zoo.build(name)).__name__ for name in zoo.SUBJECTS} == set(plans.TRANSFORMERS)


@pytest.mark.parametrize("subject", ["Wan", "Flux", "Flux2", "QwenImage", "LTX", "Z-Image"])
def test_heads_are_in_the_config(subject: str) -> None:
    transformer = zoo.build(subject)
    config = {"_class_name": type(transformer).__name__, **transformer.config}
    assert plans.heads(config) == 4


def test_heads_that_are_not_in_the_config() -> None:
    with pytest.raises(ConfigError, match="ZImageTransformer2DModel does not say"):
        plans.heads({"_class_name": "ZImageTransformer2DModel", "num_attention_heads": 4})
    assert plans.heads({"_class_name": "Other", "num_attention_heads": 6}) == 6


@pytest.mark.parametrize(
    ("name", "mixed", "apart"),
    [
        ("WanTransformer3DModel", False, False),
        ("QwenImageTransformer2DModel", True, False),
        ("ZImageTransformer2DModel", True, False),
        ("LTXVideoTransformer3DModel", True, True),
        ("LTX2VideoTransformer3DModel", True, True),
    ],
)
def test_who_takes_a_mask(name: str, mixed: bool, apart: bool) -> None:
    assert plans.masked(name) is mixed
    assert plans.masked(name, mixed=False) is apart


def test_nothing_is_claimed_of_others() -> None:
    assert not plans.sequence("SD3Transformer2DModel")
    assert plans.plan_of("SD3Transformer2DModel") is None
