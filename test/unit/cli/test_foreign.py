"""Names of other systems: accepted in every source, translated, or refused with what to use."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from safelight import config
from safelight.cli import app as application
from safelight.cli import foreign, options
from safelight.errors import ConfigError
from safelight.fields import flag, variable
from safelight.models.registry import load_card

GENERATE = options.by_name(application.GENERATE)
SERVE = options.by_name(application.SERVE)

FILE = {
    "model_path": "FastVideo/FastHunyuan-diffusers",
    "prompt": "A beautiful woman in a red dress walking down a street",
    "output_path": "outputs/",
    "num_gpus": 2,
    "sp_size": 2,
    "tp_size": 1,
    "num_frames": 45,
    "height": 720,
    "width": 1280,
    "num_inference_steps": 6,
    "seed": 1024,
    "fps": 24,
    "precision": "bf16",
    "vae_precision": "fp16",
    "vae_tiling": True,
    "vae_sp": True,
    "vae_config": {
        "load_encoder": False,
        "load_decoder": True,
        "tile_sample_min_height": 256,
        "tile_sample_min_width": 256,
    },
    "text_encoder_precisions": ["fp16", "fp16"],
    "mask_strategy_file_path": None,
    "enable_torch_compile": False,
}
"""The example of SGLang Diffusion's manual of its command line."""


def engine(given: dict[str, Any]) -> dict[str, Any]:
    return options.resolve_config(given, None, GENERATE, environ={}).engine


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
def test_a_file_of_sglang_diffusion_is_read_as_it_is(write: Any, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(write(FILE))
    resolved = options.resolve_config({}, file, GENERATE, environ={})
    built = config.build(resolved.engine)
    assert (built.model.dit_precision, built.model.vae_precision) == ("bf16", "fp16")
    assert built.model.text_encoder_precisions == ["fp16", "fp16"]
    assert (built.model.vae_tiling, built.model.enable_torch_compile) == (True, False)
    assert built.model.vae_config["tile_sample_min_width"] == 256
    assert (built.parallel.num_gpus, built.parallel.sp_degree) == (2, 2)
    assert built.parallel.vae_parallel == "auto"
    assert resolved.sampling["fps"] == 24
    assert resolved.rest == {"prompt": [FILE["prompt"]], "output_path": "outputs/"}


def test_no_name_means_two_things() -> None:
    fields = {**SERVE, **GENERATE, **options.by_name(application.BATCH)}.values()
    names = Counter(name for field in fields for name in (field.name, *field.aliases))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"parallel_type": "ulysses", "num_gpus": "2"}, {"num_gpus": 2, "ulysses_degree": 2}),
        ({"parallel_type": "ring", "gpu_ids": "0,1"}, {"gpu_ids": "0,1", "ring_degree": 2}),
        ({"parallel_type": "tp", "num_gpus": "2"}, {"num_gpus": 2, "tp_size": 2}),
        (
            {"parallel_type": "ulysses", "num_gpus": "4", "dp_size": "2"},
            {"num_gpus": 4, "dp_size": 2, "ulysses_degree": 2},
        ),
        ({"parallel_text_encoder": True, "num_gpus": "2"}, {"num_gpus": 2, "tp_size": 2}),
        ({"parallel_vae": True}, {"vae_parallel": "auto"}),
        ({"parallel_vae": True, "vae_parallel": "on"}, {"vae_parallel": "on"}),
        ({"vae_sp": False}, {"vae_parallel": "off"}),
        ({"device": "cuda:1"}, {"device": "cuda", "gpu_ids": "1"}),
        ({"dit_precision": "bfloat16"}, {"dit_precision": "bf16"}),
        ({"quantization": "float8_wo"}, {"quantization": "fp8"}),
        ({"backend": "diffusers", "model_path": "a/b"}, {"model_path": "a/b"}),
        (
            {"backend": "openai", "model_path": "gpt-image-1"},
            {"model_path": "remote:openai/gpt-image-1"},
        ),
        ({"backend": "google_genai", "model_path": "x"}, {"model_path": "remote:gemini/x"}),
        ({"cache": True}, {"step_cache": "first-block"}),
        ({"cache": False}, {"step_cache": "none"}),
        (
            {"cache": True, "step_cache_threshold": "0.2", "Fn": "1", "Bn": "0"},
            {"step_cache": "first-block", "step_cache_threshold": 0.2},
        ),
        ({"step_cache": "fbcache"}, {"step_cache": "first-block"}),
        ({"enable_teacache": False, "return_frames": False}, {}),
    ],
)
def test_a_name_is_translated(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert engine(given) == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parallel_type": "ring"}, "--parallel-type needs --num-gpus"),
        (
            {"parallel_type": "ring", "num_gpus": "2", "ring_degree": "1"},
            "--parallel-type means --ring-degree 2; 1 was given too",
        ),
        ({"parallel_type": "pipe", "num_gpus": "2"}, "tp, ulysses, ring fit"),
        ({"device": "cuda:1", "gpu_ids": "0"}, "--device cuda:1 and --gpu-ids disagree"),
        ({"backend": "step1x"}, "--backend step1x: there are diffusers, openai, google_genai"),
        ({"backend": "openai"}, "--backend openai needs --model-path"),
        ({"quantization": "int4"}, "none, int8, fp8, fp8-storage fit"),
        ({"cache": True, "step_cache": "none"}, "--cache means --step-cache first-block; none"),
        ({"step_cache": "deep_cache"}, "--step-cache: invalid enum value 'deep_cache'"),
        ({"step_cache_threshold": "-1"}, "--step-cache-threshold: expected `float` >= 0"),
        ({"cache": True, "Fn": "8"}, "--Fn 8: --step-cache first-block always computes the first"),
        ({"Bn": "1"}, "and no last ones, so --Bn is 0. Leave it out."),
    ],
)
def test_what_cannot_be_translated_is_a_clear_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        engine(given)


@pytest.mark.parametrize("name", sorted(foreign.REFUSED))
def test_a_name_without_a_meaning_is_refused_with_what_to_use(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = foreign.REFUSED[name]
    value = [] if refusal.switch else ["2"]
    for spelt in {flag(name), f"--{name}"}:
        assert application.run(["generate", "-p", "x", spelt, *value]) == 2
        assert capsys.readouterr().err == f"safelight: {flag(name)}: {refusal.instead}.\n"


@pytest.mark.parametrize("spelt", ["--model_name", "--model-name", "--model_path"])
def test_flags_may_have_underscores(spelt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert application.run(["serve", spelt, "/nowhere"]) == 2
    assert "'/nowhere' is not a diffusers pipeline" in capsys.readouterr().err


def test_switches_have_all_of_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    switches = ("--compile", "--enable_compile", "--enable_vae_tiling", "--enable_cpu_offload")
    given = [*switches, "--enable_vae_slicing", "--pin_cpu_memory", "--no-enable-torch-compile"]
    assert application.run(["serve", *given, "--model-path", "/nowhere"]) == 2
    assert "'/nowhere' is not a diffusers pipeline" in capsys.readouterr().err


def test_variables_take_the_other_names() -> None:
    given = {"torch_dtype": "float16", "rdt": "1", "cache_type": "fbcache", "device_map": "auto"}
    environ = {variable(name): value for name, value in given.items()}
    with pytest.raises(ConfigError, match="--device-map: a model is not cut up by layers"):
        options.resolve_config({}, None, GENERATE, environ=environ)
    del environ["SAFELIGHT_DEVICE_MAP"]
    resolved = options.resolve_config({}, None, GENERATE, environ=environ)
    cache = {"step_cache": "first-block", "step_cache_threshold": 1.0}
    assert resolved.engine == {"dit_precision": "fp16", **cache}


def test_a_cache_is_asked_for_as_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Up to the model, which is what is wrong."""
    for given in (["--cache", "--rdt", "0.2"], ["--cache_type", "fbcache"], ["--no-cache"]):
        assert application.run(["serve", *given, "--model-path", "/nowhere"]) == 2
        assert "'/nowhere' is not a diffusers pipeline" in capsys.readouterr().err


def test_variables_of_other_systems_get_a_hint() -> None:
    environ = {
        "DG_SERVE_NUM_INFERENCE_STEPS": "28",
        "DG_EMU35_GPUS_PER_MODEL": "2",
        "DG_STEP1X_VERSION": "v1.1",
        "SGLANG_DIFFUSION_LOG_LEVEL": "info",
        "HOME": "/",
    }
    assert options.unknown_variables(SERVE, environ) == [
        "DG_EMU35_GPUS_PER_MODEL is not read here: set SAFELIGHT_GPUS_PER_RANK.",
        "DG_SERVE_NUM_INFERENCE_STEPS is not read here: set SAFELIGHT_SERVE_NUM_INFERENCE_STEPS.",
        "DG_STEP1X_VERSION is not read here, unless by a plug-in.",
        "SGLANG_DIFFUSION_LOG_LEVEL is not read here: set SAFELIGHT_LOG_LEVEL.",
    ]


def test_defaults_of_requests_come_from_every_source(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("default_sampling: {num_inference_steps: 9, fps: 12}")
    environ = {"SAFELIGHT_SERVE_NUM_INFERENCE_STEPS": "7"}
    given = {"serve_guidance_scale": "2.5"}
    resolved = options.resolve_config(given, file, SERVE, environ=environ)
    built = config.build(options.with_defaults(resolved))
    wanted = {"num_inference_steps": 7, "fps": 12, "guidance_scale": 2.5}
    assert built.model.default_sampling == wanted
    card = load_card(built)
    assert {name: card.defaults[name] for name in wanted} == wanted
    assert card.resolve({}).num_inference_steps == 7
    assert card.resolve({"num_inference_steps": 3}).num_inference_steps == 3
