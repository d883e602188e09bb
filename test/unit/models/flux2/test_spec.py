"""FLUX.2's cards."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import Flux2KleinPipeline, Flux2Pipeline

from fakes import zoo_flux2
from fakes.cases import Checkpoints, card_of, picture
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.card import ModelCard
from safelight.request import Inputs

MAKERS = {
    "dev": zoo_flux2.tiny_flux2,
    "klein": zoo_flux2.tiny_klein,
    "distilled": zoo_flux2.tiny_distilled_klein,
}


@pytest.fixture(scope="module")
def directories(
    checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("flux2")
    return {name: checkpoints.copied(make, folder / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def cards(directories: dict[str, Path]) -> dict[str, ModelCard]:
    return {name: card_of(directory) for name, directory in directories.items()}


@pytest.mark.parametrize(
    ("model", "pipeline"), [("dev", Flux2Pipeline), ("klein", Flux2KleinPipeline)]
)
def test_the_defaults_are_the_pipelines(
    cards: dict[str, ModelCard], model: str, pipeline: Any
) -> None:
    signature = inspect.signature(pipeline.__call__).parameters
    for name in ("num_inference_steps", "guidance_scale", "max_sequence_length"):
        assert cards[model].defaults[name] == signature[name].default, name
    made = cards[model].resolve({})
    assert (made.width, made.height, cards[model].tokens(made)) == (1024, 1024, 64 * 64)


def test_a_distilled_klein_takes_few_steps_and_no_guidance(cards: dict[str, ModelCard]) -> None:
    made = cards["distilled"].resolve({})
    assert (made.num_inference_steps, made.guidance_scale) == (4, 1.0)
    with pytest.raises(InvalidRequest, match="'guidance_scale' has no effect"):
        cards["distilled"].resolve({"guidance_scale": 4.0})


@pytest.mark.parametrize("name", ["negative_prompt", "strength", "true_cfg_scale", "flow_shift"])
def test_what_has_no_effect_is_refused(cards: dict[str, ModelCard], name: str) -> None:
    value = "ugly" if name == "negative_prompt" else 2.0 if name != "strength" else 0.5
    for card in cards.values():
        with pytest.raises(InvalidRequest, match=f"'{name}' has no effect"):
            card.resolve({name: value})


@pytest.mark.parametrize(
    ("size", "made"),
    [((64, 64), (64, 64)), ((89, 70), (80, 64)), ((2048, 1024), (1440, 720))],
)
def test_the_output_is_of_the_size_of_the_first_picture(
    cards: dict[str, ModelCard], tmp_path: Path, size: tuple[int, int], made: tuple[int, int]
) -> None:
    inputs = Inputs(images=(picture(tmp_path, size, 0), picture(tmp_path, (100, 200), 1)))
    card = cards["dev"]
    sampling = card.resolve({}, inputs=inputs)
    assert (sampling.width, sampling.height) == made
    seen = (made[0] // 16) * (made[1] // 16)
    assert card.tokens(sampling, inputs) == 2 * seen + 6 * 12
    assert card.tokens(sampling) == seen


def test_who_may_share_a_forward(cards: dict[str, ModelCard], tmp_path: Path) -> None:
    """Those that see pictures of the same sizes in the same order."""
    sampling = cards["dev"].resolve({})
    sizes = [(), ((89, 70),), ((95, 79),), ((89, 70), (64, 64)), ((64, 64), (89, 70))]
    none, first, alike, two, swapped = (
        cards["dev"].batch_key(
            sampling,
            "image-to-image",
            Inputs(images=tuple(picture(tmp_path, size, 0) for size in given)),
        )
        for given in sizes
    )
    assert first == alike
    assert len({none, first, two, swapped}) == 4


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([(100, 63)], "image is 100x63; .* takes sides of at least 64"),
        ([(64, 100), (1000, 100)], "image is 1000x100; .* takes sides of at most 8 to 1"),
        ([(10, 3)], "takes sides of at least 64"),
        ([(64, 64)] * 11, "11 input images; .* takes at most 10"),
    ],
)
def test_pictures_that_the_pipeline_refuses_are_refused(
    cards: dict[str, ModelCard], tmp_path: Path, sizes: list[tuple[int, int]], words: str
) -> None:
    inputs = Inputs(images=tuple(picture(tmp_path, size, 0) for size in sizes))
    with pytest.raises(InvalidRequest, match=words) as refused:
        cards["dev"].resolve({}, inputs=inputs)
    assert refused.value.param == "image"


def rewritten(directory: Path, to: Path, file: str, **values: Any) -> Path:
    """A copy in which values of a JSON file are others."""
    shutil.copytree(directory, to)
    path = to / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return to


def test_parts_of_other_models_are_refused(directories: dict[str, Path], tmp_path: Path) -> None:
    wide = rewritten(
        directories["dev"], tmp_path / "wide", "transformer/config.json", in_channels=64
    )
    with pytest.raises(ConfigError, match="takes 64 channels, where Flux2Pipeline has 16"):
        card_of(wide)
    shallow = rewritten(
        directories["klein"], tmp_path / "low", "text_encoder/config.json", num_hidden_layers=26
    )
    with pytest.raises(ConfigError, match=r"has 26 layers; .* from layer 27"):
        card_of(shallow)
    layers = {"text_config": {"num_hidden_layers": 29}}
    shallow = rewritten(
        directories["dev"], tmp_path / "shallow", "text_encoder/config.json", **layers
    )
    with pytest.raises(ConfigError, match=r"has 29 layers; .* from layer 30"):
        card_of(shallow)


def test_without_embedded_guidance_there_is_none(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    path = rewritten(
        directories["dev"], tmp_path / "plain", "transformer/config.json", guidance_embeds=False
    )
    assert "guidance_scale" not in card_of(path).parameters


def test_ranks_share_the_image_with_the_pictures(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    card = card_of(directories["dev"], ulysses_degree=2, ring_degree=2)
    odd = Inputs(images=(picture(tmp_path, (80, 80), 0),))
    with pytest.raises(
        InvalidRequest, match="64x64 with 1 frame and these input images is 41 tokens"
    ):
        card.resolve({"width": 64, "height": 64}, inputs=odd)
    even = Inputs(images=(*odd.images, picture(tmp_path, (112, 80), 0)))
    card.resolve({"width": 64, "height": 64}, inputs=even)


def test_only_klein_has_halves_for_guidance_to_share_out(directories: dict[str, Path]) -> None:
    card_of(directories["klein"], cfg_parallel_size=2)
    for model in ("dev", "distilled"):
        with pytest.raises(ConfigError, match="runs no unconditional forward"):
            card_of(directories[model], cfg_parallel_size=2)
