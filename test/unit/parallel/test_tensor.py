"""Text encoders shared by ranks: the same outputs from a part of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from fakes import encoders_zoo, ranks, tensor_work
from fakes.ranks import RankPool
from safelight.parallel import encoders

TOLERANCE = 1e-5
"""Relative, float32: sums over ranks add up in another order."""
LARGEST_SHARE = {2: 0.60, 4: 0.35}
LARGEST_PEAK = {2: 0.80, 4: 0.60}
"""Of resident memory while loading, file pages included; relative to loading the whole."""

Pools = Callable[[int], RankPool]


@pytest.fixture
def pools(request: pytest.FixtureRequest) -> Pools:
    """Rank pools by size; only those asked for are started."""
    return lambda size: request.getfixturevalue({2: "two_ranks", 4: "four_ranks"}[size])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Every encoder, written once."""
    root = tmp_path_factory.mktemp("encoders")

    def directory(name: str) -> Path:
        if not (root / name).exists():
            encoders_zoo.write(encoders_zoo.ENCODERS[name](), root / name)
        return root / name

    return directory


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("name", encoders_zoo.ENCODERS)
def test_ranks_compute_the_whole_encoders_output_from_their_shares(
    name: str, degree: int, zoo: Callable[[str], Path], pools: Pools
) -> None:
    row = tensor_work.compare(name, zoo(name), pools(degree), degree)
    assert row.difference <= TOLERANCE
    assert row.share <= LARGEST_SHARE[degree]
    assert row.same_bits


def test_groups_of_ranks_that_share_are_apart(
    zoo: Callable[[str], Path], four_ranks: RankPool
) -> None:
    row = tensor_work.compare("Qwen3", zoo("Qwen3"), four_ranks, degree=2)
    assert row.difference <= TOLERANCE
    assert row.share > LARGEST_SHARE[4]


@pytest.mark.parametrize("name", ["UMT5", "Qwen2.5-VL"])
def test_traffic_is_what_the_layers_exchange(
    name: str, zoo: Callable[[str], Path], four_ranks: RankPool
) -> None:
    sums = 2 * 2 + 1  # attention and feed-forward of two layers, and the embedding
    states = tensor_work.IDS.numel() * 64 * 4
    expected = {"tp.all_reduce": sums * (2 * states * 3 // 4)}
    if name == "Qwen2.5-VL":
        words = math.ceil(encoders_zoo.VOCABULARY / 4)
        expected["tp.all_gather"] = tensor_work.IDS.numel() * words * 4 * 3
    for shared in four_ranks.run(tensor_work.share, zoo(name), 4, 4):
        assert shared.traffic == expected


def test_the_result_is_the_pipelines_own_class(
    zoo: Callable[[str], Path], two_ranks: RankPool
) -> None:
    shared = two_ranks.run(tensor_work.share, zoo("UMT5"), 2, 2)
    assert all(one.own for one in shared)
    assert all(one.plain for one in shared)


def test_a_wan_pipeline_encodes_prompts_with_it(
    tiny_wan_directory: Path, two_ranks: RankPool
) -> None:
    from diffusers import WanPipeline

    whole = tensor_work.prompt_embeddings(
        WanPipeline.from_pretrained(tiny_wan_directory, local_files_only=True)
    )
    for shared in two_ranks.run(tensor_work.encode_prompt, tiny_wan_directory, 2, 2):
        assert numpy.abs(shared - whole).max() <= TOLERANCE * numpy.abs(whole).max()


def test_a_picture_goes_through_the_tower_that_is_whole(
    zoo: Callable[[str], Path], two_ranks: RankPool
) -> None:
    whole = tensor_work.seen(encoders_zoo.load_whole(zoo("Qwen2.5-VL")))
    for shared in two_ranks.run(tensor_work.look, zoo("Qwen2.5-VL"), 2, 2):
        assert numpy.abs(shared - whole).max() <= TOLERANCE * numpy.abs(whole).max()


def test_generating_goes_on_with_the_same_words(tmp_path: Path, two_ranks: RankPool) -> None:
    model = encoders_zoo.qwen3()
    freely = tensor_work.continued(model)
    words = tensor_work.IDS.shape[1]
    model.generation_config.suppress_tokens = [freely[words]]  # a setting that is in the files
    encoders_zoo.write(model, tmp_path)
    whole = tensor_work.continued(encoders_zoo.load_whole(tmp_path))
    assert whole != freely
    assert two_ranks.run(tensor_work.generate, tmp_path, 2, 2) == [whole, whole]


# -------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
def test_lower_precision_agrees_within_its_own(
    dtype: torch.dtype, tolerance: float, zoo: Callable[[str], Path], two_ranks: RankPool
) -> None:
    whole = encoders_zoo.load_whole(zoo("T5"), dtype)
    first, second = two_ranks.run(tensor_work.share, zoo("T5"), 2, 2, dtype)
    assert tensor_work.difference(first.encoded, tensor_work.encode(whole)) <= tolerance
    assert tensor_work.same_bits(first.encoded, second.encoded)
    # transformers keeps one layer of T5 in float32, for float16 alone.
    kept = torch.float32 if dtype == torch.float16 else dtype
    assert {f"q {dtype}", f"wo {kept}"} <= first.dtypes
    assert {str(whole.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype)} == {str(kept)}


# ------------------------------------------------------------------------------------ checkpoints


def _both_names(directory: Path) -> None:
    """A tied embedding written twice, as in Wan's checkpoints."""
    encoders_zoo.write(encoders_zoo.t5("umt5"), directory)
    encoders_zoo.change_weights(
        directory, lambda w: w.update({"encoder.embed_tokens.weight": w["shared.weight"].clone()})
    )


def _several_files(directory: Path) -> None:
    encoders_zoo.write(encoders_zoo.t5(), directory, max_shard_size="40KB")
    assert len(list((directory / encoders_zoo.COMPONENT).glob("*.safetensors"))) > 2


def _with_a_variant(directory: Path) -> None:
    """Other weights beside those of the encoder, which `variant="variant"` would ask for."""
    encoders_zoo.write(encoders_zoo.t5(), directory)
    files = directory / encoders_zoo.COMPONENT
    weights = (files / "model.safetensors").read_bytes()
    encoders_zoo.change_weights(directory, lambda w: w.update({k: 2 * v for k, v in w.items()}))
    (files / "model.safetensors").rename(files / "model.variant.safetensors")
    (files / "model.safetensors").write_bytes(weights)


def _with_a_decoder(directory: Path) -> None:
    """All of T5 in the folder of an encoder."""
    import transformers

    model = encoders_zoo.t5()
    encoders_zoo.write(model, directory)
    whole = transformers.T5ForConditionalGeneration(model.config).state_dict()
    rest = {key: value for key, value in whole.items() if key.startswith("decoder.")}
    encoders_zoo.change_weights(directory, lambda w: w.update(rest))


def _ungated(directory: Path) -> None:
    encoders_zoo.write(encoders_zoo.t5(feed_forward_proj="relu"), directory)


def _headless(directory: Path) -> None:
    """The weights of a `…ForCausalLM` under a class without a head, as in Z-Image's checkpoints."""
    encoders_zoo.write(encoders_zoo.qwen3(), directory)
    index = directory / "model_index.json"
    index.write_text(index.read_text("utf-8").replace("Qwen3ForCausalLM", "Qwen3Model"), "utf-8")


def _biased(directory: Path) -> None:
    """Qwen3 with biases in attention, one of them beside a sum over ranks."""
    encoders_zoo.write(encoders_zoo.qwen3(attention_bias=True), directory)


def _old_qwen(directory: Path) -> None:
    """Names and numbers as transformers 4 wrote them at first."""
    encoders_zoo.write(encoders_zoo.qwen2_5_vl(), directory)
    encoders_zoo.change_weights(
        directory, lambda w: _expect(w, "model.layers.0.mlp.up_proj.weight")
    )

    def flatten(config: dict[str, Any]) -> None:
        config.update(config.pop("text_config") | {"model_type": "qwen2_5_vl"})

    encoders_zoo.change_config(directory, flatten)


def _new_qwen(directory: Path) -> None:
    """Names as the modules of transformers 5 have them."""
    encoders_zoo.write(encoders_zoo.qwen2_5_vl(), directory)
    encoders_zoo.change_weights(
        directory, _renamed({"model.": "model.language_model.", "visual.": "model.visual."})
    )


def _new_mistral(directory: Path) -> None:
    encoders_zoo.write(encoders_zoo.mistral3(), directory)
    encoders_zoo.change_weights(
        directory,
        _renamed(
            {
                "language_model.model.": "model.language_model.",
                "language_model.lm_head.": "lm_head.",
                "vision_tower.": "model.vision_tower.",
                "multi_modal_projector.": "model.multi_modal_projector.",
            }
        ),
    )


def _expect(weights: dict[str, torch.Tensor], key: str) -> None:
    assert key in weights


def _renamed(prefixes: dict[str, str]) -> Callable[[dict[str, torch.Tensor]], None]:
    def rename(weights: dict[str, torch.Tensor]) -> None:
        for old, new in prefixes.items():
            for key in [key for key in weights if key.startswith(old)]:
                weights[new + key.removeprefix(old)] = weights.pop(key)

    return rename


@pytest.mark.parametrize(
    "write",
    [
        _both_names,
        _several_files,
        _with_a_variant,
        _with_a_decoder,
        _ungated,
        _headless,
        _biased,
        _old_qwen,
        _new_qwen,
        _new_mistral,
    ],
    ids=lambda write: write.__name__.strip("_"),
)
def test_checkpoints_of_every_age_and_form(
    write: Callable[[Path], None], tmp_path: Path, two_ranks: RankPool
) -> None:
    write(tmp_path)
    row = tensor_work.compare(write.__name__, tmp_path, two_ranks, degree=2)
    assert row.difference <= TOLERANCE
    assert row.share <= LARGEST_SHARE[2]


# ---------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("medium")
    return encoders_zoo.write(encoders_zoo.umt5_medium(), directory, max_shard_size="80MB")


@pytest.mark.parametrize(("degree", "dtype"), [(2, torch.bfloat16), (4, torch.float32)])
def test_no_rank_ever_has_the_whole_in_memory(
    degree: int, dtype: torch.dtype, medium: Path
) -> None:
    with ranks.pool(degree) as fresh:  # a process that has freed much would not grow
        shares = fresh.run(tensor_work.peak, medium, degree, degree, dtype)
        whole = fresh.run(tensor_work.peak_whole, medium, dtype)
    assert max(shares) < LARGEST_PEAK[degree] * min(whole), (shares, whole)


# --------------------------------------------------------------------------------------- refusals


def test_heads_that_do_not_divide_are_refused_before_weights_are_read(
    tmp_path: Path, two_ranks: RankPool
) -> None:
    encoders_zoo.write(encoders_zoo.t5(num_heads=3), tmp_path)
    (tmp_path / encoders_zoo.COMPONENT / "model.safetensors").write_bytes(b"not weights")
    first, second = two_ranks.run(tensor_work.refusal, tmp_path, 2, 2)
    assert first == second
    assert first == (
        "ConfigError: --tp-size 2 cannot share out the 3 attention heads of text_encoder evenly; "
        "1, 3 fit."
    )


def test_an_encoder_that_is_left_whole_is_refused(tmp_path: Path, two_ranks: RankPool) -> None:
    encoders_zoo.write(encoders_zoo.clip(), tmp_path)
    assert "CLIP" in encoders.survey(tmp_path)[1][encoders_zoo.COMPONENT]
    for said in two_ranks.run(tensor_work.refusal, tmp_path, 2, 2):
        assert said.startswith("ConfigError: The text encoder text_encoder cannot be shared")


def test_a_folder_without_weights_is_named(tmp_path: Path, two_ranks: RankPool) -> None:
    encoders_zoo.write(encoders_zoo.t5(), tmp_path)
    (tmp_path / encoders_zoo.COMPONENT / "model.safetensors").unlink()
    for said in two_ranks.run(tensor_work.refusal, tmp_path, 2, 2):
        assert said.startswith("ConfigError:")
        assert "model.safetensors.index.json cannot be read" in said


def test_missing_weights_are_named(tmp_path: Path, two_ranks: RankPool) -> None:
    encoders_zoo.write(encoders_zoo.t5(), tmp_path)
    lost = "encoder.block.1.layer.0.SelfAttention.k.weight"

    def lose(weights: dict[str, torch.Tensor]) -> None:
        del weights[lost]

    encoders_zoo.change_weights(tmp_path, lose)
    for said in two_ranks.run(tensor_work.refusal, tmp_path, 2, 2):
        assert said.startswith("ConfigError:")
        assert lost in said
