"""What JSON files tell of sharing text encoders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safelight.errors import ConfigError
from safelight.parallel import encoders
from safelight.parallel.encoders import Cut

UMT5 = {"model_type": "umt5", "num_heads": 64}
QWEN = {"num_attention_heads": 28, "num_key_value_heads": 4}
CLIP = {"model_type": "clip_text_model", "num_attention_heads": 12}


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        (UMT5, 64),
        ({"model_type": "t5"}, 8),
        ({"model_type": "qwen2_5_vl", "text_config": QWEN}, 4),
        ({"model_type": "qwen2_5_vl", **QWEN}, 4),
        ({"model_type": "qwen3", "num_attention_heads": 32, "num_key_value_heads": 8}, 8),
        ({"model_type": "mistral", "num_attention_heads": 24, "num_key_value_heads": None}, 24),
        ({"model_type": "mistral3", "text_config": {"model_type": "mistral"}}, 8),
    ],
)
def test_heads_are_what_queries_and_keys_have_in_common(config: dict[str, Any], heads: int) -> None:
    assert encoders.shardable(config) == heads


@pytest.mark.parametrize("kind", encoders.FAMILIES)
def test_what_a_file_leaves_out_is_what_transformers_has(kind: str) -> None:
    """`save_pretrained` of transformers 4 left out what is as usual."""
    from transformers import AutoConfig

    usual = AutoConfig.for_model(kind).get_text_config().to_dict()
    assert encoders.FAMILIES[kind].heads == {
        key: usual[key] for key in encoders.FAMILIES[kind].heads
    }


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CLIP, "CLIP"),
        ({"model_type": "bert"}, "type bert"),
        ({}, "type unknown"),
        (UMT5 | {"quantization_config": {"quant_method": "fp8"}}, "quantized"),
    ],
)
def test_what_is_left_whole_has_a_reason(config: dict[str, Any], reason: str) -> None:
    found = encoders.shardable(config)
    assert isinstance(found, str)
    assert reason in found


def pipeline(directory: Path, **components: dict[str, Any]) -> Path:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusion3Pipeline",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder_9": [None, None],
    }
    for name, config in components.items():
        index[name] = ["transformers", "SomeClass"]
        (directory / name).mkdir()
        (directory / name / "config.json").write_text(json.dumps(config), "utf-8")
    (directory / "model_index.json").write_text(json.dumps(index), "utf-8")
    return directory


def test_a_survey_has_every_text_encoder_of_a_pipeline(tmp_path: Path) -> None:
    directory = pipeline(tmp_path, text_encoder=CLIP, text_encoder_3=UMT5, image_encoder=CLIP)
    heads, whole = encoders.survey(directory)
    assert heads == {"text_encoder_3": 64}
    assert list(whole) == ["text_encoder"]


def test_a_plan_fits_the_ranks_or_says_what_would(tmp_path: Path) -> None:
    directory = pipeline(tmp_path, text_encoder=CLIP, text_encoder_2=UMT5 | {"num_heads": 6})
    assert encoders.plan(directory, "text_encoder_2", 3) is encoders.FAMILIES["umt5"]
    with pytest.raises(ConfigError, match=r"6 attention heads of text_encoder_2 .* 1, 2, 3, 6 fit"):
        encoders.plan(directory, "text_encoder_2", 4)
    with pytest.raises(ConfigError, match=r"text_encoder cannot be shared by ranks: it is a CLIP"):
        encoders.plan(directory, "text_encoder", 2)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model_index\.json cannot be read"):
        encoders.survey(tmp_path)
    (tmp_path / "model_index.json").write_text("[]", "utf-8")
    with pytest.raises(ConfigError, match="not a JSON object"):
        encoders.survey(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "cut"),
    [
        ("umt5", "encoder.block.3.layer.0.SelfAttention.q", Cut.OUTPUTS),
        ("umt5", "encoder.block.3.layer.0.SelfAttention", None),
        ("umt5", "encoder.block.3.layer.0.layer_norm", None),
        ("t5", "encoder.block.0.layer.1.DenseReluDense.wi", Cut.OUTPUTS),
        ("t5", "shared", Cut.VOCABULARY),
        ("qwen2_5_vl", "model.language_model.layers.7.mlp.down_proj", Cut.INPUTS),
        ("qwen2_5_vl", "model.layers.7.mlp.down_proj", Cut.INPUTS),
        ("qwen2_5_vl", "visual.blocks.7.mlp.down_proj", None),
        ("qwen3", "lm_head", Cut.LOGITS),
        ("qwen3", "model.layers.1.self_attn.q_norm", None),
        ("mistral3", "vision_tower.transformer.layers.0.attention.q_proj", None),
        ("mistral3", "vision_tower.transformer.layers.0.feed_forward.up_proj", None),
    ],
)
def test_layers_are_cut_by_the_end_of_their_names(kind: str, name: str, cut: Cut | None) -> None:
    assert encoders.FAMILIES[kind].cut(name) is cut


def test_it_needs_no_torch() -> None:
    script = "import sys, safelight.parallel.encoders as e\nprint({'torch'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
