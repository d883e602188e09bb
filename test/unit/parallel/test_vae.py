"""A VAE split over ranks gives what it gives whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fakes import vae_work, vaes_zoo
from fakes.ranks import RankPool
from safelight.errors import ConfigError
from safelight.parallel import vaes
from safelight.parallel.mesh import Mesh
from safelight.parallel.vae import ParallelVae, facts_of

TOLERANCE = 1e-4
"""Absolute, of float32 values up to 5 in magnitude: a convolution's sum in another order."""

WHOLE = "AutoencoderKLLTXVideo"
SPLIT = [name for name in vaes_zoo.ZOO if name != WHOLE]

pools = pytest.mark.parametrize("pool", ["two_ranks", "four_ranks"])
cpu = torch.device("cpu")


@pytest.fixture
def ranks(request: pytest.FixtureRequest, pool: str) -> RankPool:
    return request.getfixturevalue(pool)


@pools
@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("work", [vae_work.decode_parity, vae_work.encode_parity])
def test_split_is_whole(ranks: RankPool, name: str, work: Any) -> None:
    results = ranks.run(work, name, vae_work.cases(ranks.size))
    for case in zip(*results, strict=True):
        assert len(set(case)) == 1  # every rank has the same bits
        assert case[0].messages > 10  # and did not just compute the whole
        assert case[0].delta <= TOLERANCE
        assert case[0].magnitude > 0.3


@pytest.mark.parametrize("name", SPLIT)
def test_whole_and_split_by_turns(two_ranks: RankPool, name: str) -> None:
    for found in two_ranks.run(vae_work.alternate, name):
        assert found == [(True, True), (True, True)]


@pytest.mark.parametrize("name", SPLIT)
def test_the_weights_are_there_once(two_ranks: RankPool, name: str) -> None:
    found = two_ranks.run(vae_work.weights, name)[0]
    assert found.both == found.alone > 100_000
    assert found.follows


def test_pairs_of_four_ranks_decode_apart(four_ranks: RankPool) -> None:
    """Latents of two and three rows, which are enough for two ranks and not for four."""
    found = four_ranks.run(vae_work.pairs, "AutoencoderKLWan")
    assert max(p.delta for p in found) <= TOLERANCE
    assert min(p.messages for p in found) > 10
    digests = [p.digest for p in found]
    assert digests[0] == digests[1] != digests[2] == digests[3]


# -------------------------------------------------------------------------- whole, or together


def test_one_rank_is_diffusers() -> None:
    vae, untouched = vaes_zoo.build("AutoencoderKLWan"), vaes_zoo.build("AutoencoderKLWan")
    ours = ParallelVae(vae, Mesh.single(cpu), "on")
    latents, pixels = vae_work.latents(vae, 4), vae_work.pixels(vae, 4)
    with torch.inference_mode():
        assert torch.equal(ours.decode(latents), untouched.decode(latents).sample)
        encoded = ours.encode(pixels).latent_dist.parameters
        assert torch.equal(encoded, untouched.encode(pixels).latent_dist.parameters)
    assert not ours.decode(latents).requires_grad
    assert not ours.encode(pixels).latent_dist.parameters.requires_grad
    assert ours.whole is vae and ours.split is None
    assert not ours.splits_decode(latents.shape) and not ours.splits_encode(pixels.shape)


@pytest.mark.parametrize(
    ("mode", "rows"), [("off", 8), ("auto", 8), ("on", 1)], ids=["off", "small", "too few rows"]
)
def test_whole_needs_nobody(two_ranks: RankPool, mode: str, rows: int) -> None:
    assert two_ranks.run(vae_work.alone, "AutoencoderKL", mode, rows) == [(True, 0)] * 2


def test_auto_splits_what_is_large(two_ranks: RankPool, four_ranks: RankPool) -> None:
    # AutoencoderKL here has 4 pixels a latent row: the threshold is 4096 latents.
    sizes = [(64, 64), (64, 63), (8, 512), (7, 600), (1, 4096)]
    assert vaes.AUTO_PIXELS == 4096 * 4**2 and vaes.AUTO_ROWS == 4
    run = vae_work.decisions
    found = [True, False, True, False, False]
    assert two_ranks.run(run, "AutoencoderKL", "auto", sizes) == [found] * 2
    assert (
        four_ranks.run(run, "AutoencoderKL", "auto", [(16, 256), (15, 600)]) == [[True, False]] * 4
    )
    assert two_ranks.run(run, "AutoencoderKL", "off", sizes)[0] == [False] * 5
    assert two_ranks.run(run, "AutoencoderKL", "on", sizes)[0] == [True] * 4 + [False]
    assert two_ranks.run(run, WHOLE, "auto", sizes)[0] == [False] * 5


def test_samples_count_towards_what_is_large(two_ranks: RankPool) -> None:
    assert two_ranks.run(vae_work.batch_decisions, "AutoencoderKL")[0] == [False, True] * 2


def test_heights_between_latent_rows_are_encoded_whole(two_ranks: RankPool) -> None:
    run = vae_work.encode_decisions
    sizes = [(8, 32), (9, 32), (10, 32), (12, 31), (4, 32)]
    assert two_ranks.run(run, "AutoencoderKL", "on", sizes)[0] == [True, False, False, True, False]
    large = [(256, 256), (256, 255), (28, 4000)]
    assert two_ranks.run(run, "AutoencoderKL", "auto", large)[0] == [True, False, False]


def test_what_cannot_be_split_is_refused_only_if_asked_for(two_ranks: RankPool) -> None:
    for text in two_ranks.run(vae_work.refusal, WHOLE):
        assert WHOLE in text and "--vae-parallel auto" in text
    with pytest.raises(ConfigError, match="cannot be split") as refused:
        ParallelVae(vaes_zoo.build(WHOLE), Mesh.single(cpu), "on")
    assert refused.value.param == "vae_parallel"


def test_blocks_distvae_does_not_know() -> None:
    """The configuration promises more than the loaded VAE has."""
    vae = vaes_zoo.build("AutoencoderKL")
    vae.decoder.up_blocks[0] = torch.nn.Identity()
    assert "AutoencoderKL" in ParallelVae(vae, Mesh.single(cpu), "auto").reason


# ------------------------------------------------------------------------ messages and failures


@pools
def test_every_byte_is_counted(ranks: RankPool) -> None:
    for counted, expected in ranks.run(vae_work.traffic, 7, 2):
        assert counted == expected


@pytest.mark.parametrize("name", ["AutoencoderKLWan", "AutoencoderKLHunyuanVideo"])
def test_a_failure_midway_leaves_nothing(four_ranks: RankPool, name: str) -> None:
    """Ranks in the middle sent twice as much, and still agree on how far they got."""
    assert four_ranks.run(vae_work.fail_midway, name) == [("as told", 0, True)] * 4


def test_wrong_latents_are_refused_before_any_message(two_ranks: RankPool) -> None:
    for raised, messages in two_ranks.run(vae_work.wrong_channels, "AutoencoderKLWan"):
        assert "channels" in raised and messages == 0


def test_options_reach_the_vae(two_ranks: RankPool) -> None:
    """LTX-2's decoder can take a timestep."""
    for delta, effect in two_ranks.run(vae_work.with_timestep):
        assert delta <= TOLERANCE < effect


def test_diffusers_still_decodes_one_hunyuan_15_at_a_time() -> None:
    """If this passes no more, `ONE_BY_ONE` can go."""
    vae = vaes_zoo.build("AutoencoderKLHunyuanVideo15")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="broadcast shape"):
        vae.decode(vae_work.latents(vae, 2, samples=2))


# ------------------------------------------------------------------------------------ the facts


@pytest.mark.parametrize("name", SPLIT)
def test_compression_is_what_the_layers_do(name: str) -> None:
    vae = vaes_zoo.build(name)
    pixels = vae_work.pixels(vae, 2)
    with torch.inference_mode():
        assert vae.encode(pixels).latent_dist.mode().shape[-2] == 2
    facts = facts_of(vae)
    assert vaes.compression(facts) == pixels.shape[-2] // 2
