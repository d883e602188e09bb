"""Z-Image's card."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline

from fakes import zoo_z_image
from fakes.cases import Checkpoints, card_of, picture
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.z_image.spec import ZImageCard
from safelight.request import Inputs


@pytest.fixture(scope="module")
def directory(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.copied(zoo_z_image.tiny_z_image, tmp_path_factory.mktemp("z_image") / "base")


@pytest.fixture(scope="module")
def card(directory: Path) -> ZImageCard:
    card = card_of(directory)
    assert isinstance(card, ZImageCard)
    return card


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_defaults_are_the_pipelines(card: ZImageCard) -> None:
    text = inspect.signature(ZImagePipeline.__call__).parameters
    changed = inspect.signature(ZImageImg2ImgPipeline.__call__).parameters
    for name in ("num_inference_steps", "guidance_scale"):
        assert card.defaults[name] == text[name].default == changed[name].default
    assert card.task_defaults["image-to-image"]["strength"] == changed["strength"].default


def test_the_real_model(directory: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """With the base model's numbers, a size of a megapixel and the pipeline's length of text."""
    own = checkpoints.copied(zoo_z_image.tiny_z_image, tmp_path / "real")
    rewrite(own / "transformer" / "config.json", axes_lens=[1536, 512, 512])
    default = card_of(own).resolve({})
    assert (default.width, default.height, default.max_sequence_length) == (1024, 1024, 512)
    assert card_of(own).tokens(default) == 64 * 64


def test_turbo_is_known_by_its_sampler(checkpoints: Checkpoints, tmp_path: Path) -> None:
    own = checkpoints.copied(zoo_z_image.tiny_turbo, tmp_path / "turbo")
    default = card_of(own).resolve({"max_sequence_length": 32})
    assert (default.num_inference_steps, default.guidance_scale) == (8, 0.0)
    (own / "safelight.json").write_text('{"defaults": {"num_inference_steps": 9}}')
    assert card_of(own).resolve({}).num_inference_steps == 9


def test_sizes_of_similar_cost_share_a_forward(card: ZImageCard) -> None:
    def key(width: int, height: int, **values: Any) -> str:
        sampling = card.resolve({"width": width, "height": height, **values})
        return card.batch_key(sampling, "text-to-image")

    assert key(64, 96) == key(96, 64) == key(80, 80)
    assert key(64, 96, max_sequence_length=32, guidance_scale=0) == key(96, 64)
    assert key(16, 16) == key(64, 128), "both are padded to 32 tokens"
    assert len({key(64, 96), key(128, 96), key(512, 512), key(256, 512)}) == 4


@pytest.mark.parametrize(
    ("size", "expected"), [((90, 70), (80, 64)), ((64, 64), (64, 64)), ((200, 7), (192, 16))]
)
def test_the_size_is_the_pictures(
    card: ZImageCard, tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    inputs = Inputs(images=(picture(tmp_path, size, 0),))
    sampling = card.resolve({}, inputs=inputs)
    assert (sampling.width, sampling.height, sampling.strength) == (*expected, 0.6)
    assert card.resolve({"width": 96, "height": 96}, inputs=inputs).width == 96


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 72}, ["'width' is 72", "in steps of 16", "64 or 80"]),
        ({"height": 1024}, ["'height' is 1024", "16 to 512", "Nearest: 512"]),
        ({"num_frames": 5}, ["'num_frames' is 5", "an image has 1"]),
        ({"max_sequence_length": 300}, ["is 300", "at most 224"]),
        ({"true_cfg_scale": 4.0}, ["'true_cfg_scale' has no effect"]),
        ({"strength": 0.5}, ["'strength' has no effect on text-to-image", "Leave it out"]),
    ],
)
def test_the_card_refuses(card: ZImageCard, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        card.resolve(values)
    assert refused.value.param == next(iter(values))
    for word in words:
        assert word in str(refused.value)


def test_a_strength_without_steps(card: ZImageCard, tmp_path: Path) -> None:
    inputs = Inputs(images=(picture(tmp_path, (64, 64), 0),))
    with pytest.raises(InvalidRequest, match=r"leaves none of the 4 steps. Give at least 0\.25"):
        card.resolve({"strength": 1e-20, "num_inference_steps": 4}, inputs=inputs)


def test_one_picture_and_no_mask(card: ZImageCard, tmp_path: Path) -> None:
    one = picture(tmp_path, (64, 64), 0)
    with pytest.raises(InvalidRequest, match="2 input images; base takes at most 1"):
        card.resolve({}, inputs=Inputs(images=(one, one)))
    with pytest.raises(InvalidRequest, match="from a mask"):
        card.resolve({}, inputs=Inputs(images=(one,), mask=one))


def test_other_tokens_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    own = checkpoints.copied(zoo_z_image.tiny_z_image, tmp_path / "other")
    rewrite(own / "transformer" / "config.json", all_patch_size=[4])
    with pytest.raises(ConfigError, match="no tokens of 2x2 latents"):
        card_of(own)


def test_layouts(directory: Path) -> None:
    for fits in ({"ulysses_degree": 4}, {"cfg_parallel_size": 2, "ulysses_degree": 2}):
        card_of(directory, **fits)
    with pytest.raises(ConfigError, match=r"--ring-degree 2.*takes an attention mask"):
        card_of(directory, ring_degree=2)
    with pytest.raises(ConfigError, match=r"--ulysses-degree 3 cannot share out the 4"):
        card_of(directory, ulysses_degree=3)
