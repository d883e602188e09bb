"""The shipped weights of builtin:shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from safelight.builtin import KNOWN, builtin_model
from safelight.builtin.training import world
from safelight.builtin.training.evaluate import Case, load_pipeline, run_case

FOLDER = builtin_model("shapes")


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline(FOLDER)


def test_every_known_model_is_packaged() -> None:
    for name in KNOWN:
        assert (builtin_model(name) / "model_index.json").is_file()


def test_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"builtin:shapes"):
        builtin_model("circles")
    with pytest.raises(ValueError, match=r"unknown built-in model '\.\./shapes'"):
        builtin_model("../shapes")


def test_finding_a_model_does_not_import_torch() -> None:
    code = (
        "import sys; from safelight.builtin import builtin_model; builtin_model('shapes');"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_package_is_small_and_complete() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert {"safelight.json", "MODEL_CARD.md"} <= {path.name for path in files}


def test_tokenizer_class_loads_in_old_and_new_transformers() -> None:
    config = json.loads((FOLDER / "tokenizer" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]


def test_weights_are_bfloat16() -> None:
    from safetensors import safe_open

    for path in FOLDER.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            kinds = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
        assert kinds == {torch.bfloat16}, path


def test_layout_can_be_split_in_four(pipeline) -> None:
    config = pipeline.transformer.config
    assert config.num_attention_heads % 4 == 0
    side = world.SIZE // pipeline.vae_scale_factor_spatial // config.patch_size[1]
    for frames in range(1, world.MAX_FRAMES + 1, 2):
        latent_frames = (frames - 1) // pipeline.vae_scale_factor_temporal + 1
        assert latent_frames * side * side % 4 == 0


def test_padded_text_keys_stay_zero(pipeline) -> None:
    """Hundreds of unmasked zero keys follow the words: no bias may wake them."""
    transformer = pipeline.transformer
    embedder = transformer.condition_embedder.text_embedder
    biases = [embedder.linear_1.bias, embedder.linear_2.bias]
    biases += [block.attn2.to_k.bias for block in transformer.blocks]
    assert all(not bias.any() for bias in biases)


def test_tokenizer_agrees_with_training(pipeline) -> None:
    for scene in world.all_held_out_scenes():
        text = "Look: " + world.canonical_caption(scene).capitalize() + "."
        assert pipeline.tokenizer(text)["input_ids"] == world.tokenize(text)


def test_held_out_combinations_are_not_trained() -> None:
    trained, held_out = set(world.TRAIN_COMBINATIONS), set(world.HELD_OUT_COMBINATIONS)
    assert not trained & held_out
    assert len(trained) == 75
    assert len(held_out) == 15
    for part in range(3):  # every colour, shape and motion is trained in other company
        assert {triple[part] for triple in held_out} <= {triple[part] for triple in trained}


def test_held_out_clips_show_what_was_asked(pipeline) -> None:
    scores = run_case(pipeline, Case("sample", world.all_held_out_scenes()[::3], seed=31))
    assert min(scores[name] for name in world.Scene._fields) >= 0.85, scores


def test_held_out_stills_show_what_was_asked(pipeline) -> None:
    case = Case("stills", world.all_held_out_scenes()[1::3], seed=47, frames=1)
    scores = run_case(pipeline, case)
    assert min(scores[name] for name in ("color", "background", "shape")) >= 0.8, scores


@pytest.mark.parametrize("frames", [1, 3, 9, 13])
def test_frame_counts_are_kept(pipeline, frames: int) -> None:
    clip = pipeline(
        prompt="a red circle moving left on a white background",
        height=64,
        width=64,
        num_frames=frames,
        num_inference_steps=2,
        output_type="np",
    ).frames
    assert clip.shape == (1, frames, 64, 64, 3)


def test_serving_file_is_read_by_the_engine() -> None:
    serving = json.loads(Path(FOLDER / "safelight.json").read_text())
    assert serving["name"] == "shapes"
    assert serving["defaults"]["num_frames"] in range(*serving["limits"]["num_frames"])
