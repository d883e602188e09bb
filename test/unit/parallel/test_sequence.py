"""A split sequence gives what an unsplit one gives, or is refused; never something else."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel, WanTransformer3DModel
from diffusers.models import attention_dispatch

from fakes import sequence_work
from fakes import transformers_zoo as zoo
from fakes.ranks import RankPool
from fakes.sequence_parity import Row, sequence_parity
from safelight.errors import ConfigError, GenerationFailed
from safelight.models.plans import plan_of
from safelight.parallel.diffusers_compat import SequenceConfig
from safelight.parallel.layout import Layout
from safelight.parallel.mesh import Mesh
from safelight.parallel.plan import Gather, SequencePlan
from safelight.parallel.sequence import SequenceParallel

CPU = torch.device("cpu")
TOLERANCE = 2e-6
"""Absolute, on outputs of about 1; 5e-7 is the largest seen."""
MASKED = (
    "QwenImage, text mask",
    "LTX, text mask",
    "LTX-2, text mask",
    "Z-Image, prompts of two lengths",
)


@pytest.fixture(scope="module")
def rows(two_ranks: RankPool, four_ranks: RankPool) -> list[Row]:
    return sequence_parity(two_ranks, four_ranks)


def expected_refusal(row: Row) -> str:
    """What the refusal must say, or nothing."""
    if row.layout.even and not row.even:
        return "27 tokens do not divide into 4 equal parts"
    if row.transformer in MASKED and row.layout.ring > 1:
        return "Ring attention does not rotate an attention mask"
    if row.transformer in MASKED and not row.even:
        return "A masked sequence does not divide"
    return ""


def test_a_split_sequence_gives_what_one_rank_gives(rows: list[Row]) -> None:
    assert len(rows) == 6 * (2 * 8 + 2)
    wrong = [
        row
        for row in rows
        if not expected_refusal(row) and (row.difference is None or row.difference > TOLERANCE)
    ]
    assert wrong == []


def test_ulysses_gives_the_bits_for_wan(rows: list[Row]) -> None:
    """Attention is computed head by head there too, in the same order."""
    ours = [r for r in rows if r.transformer == "Wan" and r.layout.ring == 1]
    assert len(ours) == 2 * 3
    assert {row.difference for row in ours} == {0.0}


def test_what_would_be_wrong_is_refused_by_every_rank_alike(rows: list[Row]) -> None:
    refused = [row for row in rows if expected_refusal(row)]
    assert len(refused) == 35
    for row in refused:
        assert row.difference is None, row
        assert expected_refusal(row) in row.refusal


def test_ranks_that_repeat_others_work_have_their_own_group(four_ranks: RankPool) -> None:
    for layout in (Layout(spare=2, ulysses=2), Layout(spare=2, ring=2)):
        case = sequence_work.Case(subject="Wan", layout=layout)
        for (outcome,) in four_ranks.run(sequence_work.compare, [case]):
            assert outcome.difference is not None
            assert outcome.difference <= TOLERANCE


@pytest.mark.parametrize("layout", [Layout(ulysses=2), Layout(ring=2)])
def test_lengths_may_change_from_one_forward_to_the_next(
    two_ranks: RankPool, layout: Layout
) -> None:
    for differences in two_ranks.run(sequence_work.alternate, layout):
        assert max(differences) <= TOLERANCE


def test_one_rank_is_left_alone() -> None:
    transformer = zoo.build("Wan")
    sequence = SequenceParallel.apply(transformer, Mesh.single(CPU))
    sequence.prepare(27)
    assert sequence.ranks == 1
    assert transformer._parallel_config is None
    assert not any(hasattr(module, "_diffusers_hook") for module in transformer.modules())


# ---------------------------------------------------------------------------- lengths


def prepared(config: SequenceConfig, *lengths: int) -> tuple[bool, bool]:
    SequenceParallel(config).prepare(*lengths)
    return config.ulysses_anything, config.ring_anything


@pytest.mark.parametrize(
    ("config", "lengths", "anything"),
    [
        (SequenceConfig(ulysses_degree=4), (32, 8), (False, False)),
        (SequenceConfig(ulysses_degree=4), (32, 7), (True, False)),
        (SequenceConfig(ulysses_degree=4), (30, 8), (True, False)),
        (SequenceConfig(ring_degree=4), (30,), (False, True)),
        (SequenceConfig(ring_degree=4), (32,), (False, False)),
        (SequenceConfig(ring_degree=2, ulysses_degree=2), (32, 8), (False, False)),
    ],
)
def test_unequal_parts_are_allowed_for_exactly_when_there_are_some(
    config: SequenceConfig, lengths: tuple[int, ...], anything: tuple[bool, bool]
) -> None:
    assert prepared(config, *lengths) == anything
    assert prepared(config, 64) == (False, False)


@pytest.mark.parametrize(
    ("config", "lengths", "reason"),
    [
        (SequenceConfig(ring_degree=2, ulysses_degree=2), (32, 6), "6 tokens do not divide into 4"),
        (SequenceConfig(ulysses_degree=4), (32, 3), "4 ranks cannot share 3 tokens"),
        (SequenceConfig(ring_degree=4), (3,), "4 ranks cannot share 3 tokens"),
    ],
)
def test_lengths_that_ranks_cannot_share(
    config: SequenceConfig, lengths: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(GenerationFailed, match=reason):
        prepared(config, *lengths)


# ---------------------------------------------------------------------------- masks


def admitted(mask: torch.Tensor, **config: bool) -> torch.Tensor | None:
    """By Ulysses, for five keys of this rank's and three heads."""
    key = torch.zeros(2, 5, 3, 8)
    return SequenceConfig(ulysses_degree=2, **config).admit(mask, key)


def test_masks_of_this_ranks_keys_are_admitted() -> None:
    for shape in ((2, 1, 1, 5), (1, 1, 1, 5), (2, 5)):
        mask = torch.ones(shape)
        assert torch.equal(admitted(mask), mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 3, 1, 5), (2, 1, 5, 5), (2, 1, 1, 10)])
def test_masks_by_head_or_query_or_of_other_keys_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GenerationFailed, match="is not one row of this rank's 5 keys"):
        admitted(torch.ones(shape))


def test_a_mask_that_repeats_by_head_is_admitted_once() -> None:
    """Contiguous, as NCCL wants it."""
    mask = torch.randn(2, 1, 1, 10)[..., ::2].expand(2, 3, 1, 5)
    once = admitted(mask, masks_repeat=True)
    assert once is not None
    assert torch.equal(once, mask[:, :1])
    assert once.is_contiguous()


# ---------------------------------------------------------------------------- transformers


def applied(
    transformer: torch.nn.Module, plan: SequencePlan | None = None, ulysses: int = 2
) -> None:
    """As far as it comes without the other ranks."""
    SequenceParallel.apply(transformer, Mesh(Layout(ulysses=ulysses), 0, CPU), plan)


def test_heads_must_be_shared_out_evenly() -> None:
    with pytest.raises(ConfigError, match="--ulysses-degree 3 cannot share out the 4 attention"):
        applied(zoo.build("Wan"), ulysses=3)


def test_a_transformer_without_a_plan_is_refused() -> None:
    with pytest.raises(ConfigError, match="ZImageTransformer2DModel has no plan"):
        applied(zoo.build("Z-Image"))


def test_attention_that_would_see_its_own_part_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = SequencePlan(modules={"proj_out": Gather(1)})
    with pytest.raises(ConfigError, match="JointAttnProcessor2_0 of SD3Transformer2DModel"):
        applied(tiny_sd3(), plan)

    processor = zoo.build("Wan").blocks[1].attn1.processor
    transformer = zoo.build("Wan")
    transformer.blocks[1].attn1.processor = processor
    processor._attention_backend = "_native_math"  # not the first one's, and not the default
    with pytest.raises(ConfigError, match="or the attention backend it uses"):
        applied(transformer)

    registry = attention_dispatch._AttentionBackendRegistry
    backend = attention_dispatch.AttentionBackendName._NATIVE_MATH
    monkeypatch.setattr(registry, "_active_backend", backend)
    with pytest.raises(ConfigError, match="or the attention backend it uses"):
        applied(zoo.build("Wan"))


def test_a_plan_that_names_no_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="No attention of WanTransformer3DModel"):
        applied(zoo.build("Wan"), SequencePlan(attention=("layers",)))


def test_it_is_split_once(two_ranks: RankPool) -> None:
    for said in two_ranks.run(sequence_work.twice, Layout(ulysses=2)):
        assert said == "This WanTransformer3DModel has been made parallel before."


def test_what_is_refused_is_left_as_it_was() -> None:
    transformer = zoo.build("Wan")
    with pytest.raises(ConfigError):
        applied(transformer, ulysses=3)
    assert transformer._parallel_config is None
    assert transformer.blocks[0].attn1.processor._parallel_config is None


def tiny_sd3() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
    )


def test_plans_are_known_by_class() -> None:
    assert plan_of(WanTransformer3DModel.__name__) == SequencePlan()
    assert plan_of(SD3Transformer2DModel.__name__) is None
