"""Components go where they belong, in the right precision, and only if their weights are there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes.single_files import write_gguf
from safelight import config as configuration
from safelight.config import EngineConfig
from safelight.errors import ConfigError
from safelight.models import loading, sources
from safelight.models.footprint import footprint
from safelight.models.registry import load_family
from safelight.parallel.layout import Layout

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"


@pytest.fixture
def model(tiny_wan_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_wan_directory, tmp_path / "model")


@pytest.fixture(scope="module")
def wide(tiny_wan_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan whose transformer is wide enough for Q8_0's blocks of 32."""
    from diffusers import WanTransformer3DModel

    directory = tmp_path_factory.mktemp("wide") / "wan"
    shutil.copytree(tiny_wan_directory, directory)
    torch.manual_seed(0)
    WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=64,
        ffn_dim=256,
        num_layers=2,
        rope_max_seq_len=32,
    ).save_pretrained(directory / "transformer")
    return directory


def config(directory: Path, **values: Any) -> EngineConfig:
    settings = {"model_path": str(directory), "device": "cpu", **values}
    return sources.prepare(configuration.build(settings), downloading=None)


def load(directory: Path, **values: Any) -> Any:
    return load_family(config(directory, **values))


@torch.inference_mode()
def forward(transformer: Any) -> torch.Tensor:
    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    dtype = transformer.dtype
    latents, embeds = noise(1, 16, 1, 8, 8).to(dtype), noise(1, 64, 32).to(dtype)
    out: torch.Tensor = transformer(latents, torch.tensor([500.0]), embeds, return_dict=False)[0]
    return out.float()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# ---------------------------------------------------------------------------------------- placement


def test_a_rank_without_a_gpu_is_told_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    model = configuration.build({"device": "cuda"}).model
    assert loading.device_of(model) == torch.device("cuda")
    assert loading.device_of(model, 1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="Rank 2 has no GPU: torch sees 2"):
        loading.device_of(model, 2)


def test_offloaded_encoders_stay_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which stands for a GPU here."""
    offloaded: list[tuple[object, bool]] = []
    monkeypatch.setattr(loading, "offload", lambda one, to, *, pin: offloaded.append((one, pin)))
    parts = {name: torch.nn.Linear(2, 2) for name in ("text_encoder_2", "transformer")}
    parts = {**parts, "tokenizer": object()}  # type: ignore[dict-item]
    for pinned in (True, False):
        settings = {"text_encoder_cpu_offload": True, "pin_cpu_memory": pinned}
        loading.place(parts, configuration.build(settings).model, torch.device("meta"))
        assert offloaded.pop() == (parts["text_encoder_2"], pinned)
    assert parts["text_encoder_2"].weight.device.type == "cpu"
    assert parts["transformer"].weight.device.type == "meta"


def test_weights_are_counted_by_component() -> None:
    parts = {"vae": torch.nn.Linear(3, 5), "tokenizer": object()}
    assert loading.weight_bytes(parts) == {"vae": 4 * (3 * 5 + 5)}


def test_it_is_told_what_is_read(model: Path) -> None:
    told: list[tuple[str, int, int, int]] = []
    with loading.reporting(lambda *what: told.append(what)):
        load(model)
    assert [(name, place, count) for name, place, count, _ in told] == [
        ("text_encoder", 1, 3),
        ("transformer", 2, 3),
        ("vae", 3, 3),
    ]
    assert told[1][3] == (model / TRANSFORMER).stat().st_size
    told.clear()
    load(model)
    assert told == []


# ---------------------------------------------------------------------------------------- precision


def test_every_component_has_its_precision(model: Path) -> None:
    family = load(model, precision="bf16", vae_precision="fp16", text_encoder_precisions=["fp32"])
    parts = family.pipeline.components
    assert parts["transformer"].dtype is torch.bfloat16
    assert parts["vae"].dtype is torch.float16
    assert parts["text_encoder"].dtype is torch.float32


@pytest.mark.parametrize(
    ("values", "cuda", "expected"),
    [
        ({}, False, ("fp32", "fp32", "fp32", "fp32")),
        ({}, True, ("bf16", "bf16", "bf16", "fp32")),
        ({"dit_precision": "fp16"}, True, ("fp16", "fp16", "fp16", "fp32")),
        ({"text_encoder_precision": "fp32"}, True, ("bf16", "fp32", "fp32", "fp32")),
        ({"text_encoder_precisions": ["fp16"]}, True, ("bf16", "fp16", "bf16", "fp32")),
        (
            {"text_encoder_precisions": ["auto", "fp16"], "text_encoder_precision": "fp32"},
            True,
            ("bf16", "fp32", "fp16", "fp32"),
        ),
    ],
)
def test_precisions_follow_each_other(values: Any, cuda: bool, expected: tuple[str, ...]) -> None:
    found = sources.precisions(configuration.build(values).model, cuda=cuda)
    names = ("transformer", "text_encoder", "text_encoder_2", "vae")
    assert tuple(found[name] for name in names) == expected


# ----------------------------------------------------------------------------- one file, eight bits


def test_a_transformer_of_one_file_is_the_same(wide: Path, tmp_path: Path) -> None:
    expected = forward(load(wide).transformer)
    base = shutil.copytree(wide, tmp_path / "base")
    file = (base / TRANSFORMER).rename(tmp_path / "wan.safetensors")
    family = load(base, transformer_path=str(file))
    assert torch.equal(forward(family.transformer), expected)


def test_a_gguf_transformer_is_near_the_full_one(wide: Path, tmp_path: Path) -> None:
    """Q8_0 beside full precision: 0.4 % of the output's norm, where bf16 has 0.7 %."""
    full = load(wide)
    file = write_gguf(wide / TRANSFORMER, tmp_path / "wan.gguf")
    family = load(wide, transformer_path=str(file))
    assert 1e-4 < error(forward(family.transformer), forward(full.transformer)) < 0.01
    assert family.weights()["transformer"] < 0.4 * full.weights()["transformer"]
    expected = footprint(config(wide, transformer_path=str(file)), Layout(), cuda=False).weights
    assert abs(expected["transformer"] / family.weights()["transformer"] - 1) < 0.2


def test_weights_kept_in_fp8_are_near_the_full_ones(wide: Path) -> None:
    full = load(wide)
    family = load(wide, quantization="fp8-storage")
    assert family.dtype is torch.float32
    assert 1e-4 < error(forward(family.transformer), forward(full.transformer)) < 0.02
    assert family.weights()["transformer"] < 0.5 * full.weights()["transformer"]


@pytest.mark.parametrize(("quantization", "bound"), [("int8", 0.01), ("fp8", 0.05)])
def test_torchao_is_near_the_full_one_or_refused(
    wide: Path, quantization: str, bound: float
) -> None:
    """The extra is not installed everywhere; without it the refusal says what to install."""
    try:
        family = load(wide, quantization=quantization)
    except ConfigError as failure:
        assert "pip install 'safelight[quantization]'" in failure.message
        return
    full = load(wide)
    assert 1e-4 < error(forward(family.transformer), forward(full.transformer)) < bound
    assert family.weights()["transformer"] < 0.5 * full.weights()["transformer"]


# ---------------------------------------------------------------------- weights that are not theirs


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def refusal(directory: Path, **values: Any) -> str:
    with pytest.raises(ConfigError) as failure:
        load(directory, **values)
    message = failure.value.message
    assert "\n" not in message
    return message


WRONG = [
    (TRANSFORMER, "blocks.0.ffn.net.2.weight", "transformer"),
    (ENCODER, "encoder.block.0.layer.0.SelfAttention.q.weight", "text_encoder"),
    ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight", "vae"),
]


@pytest.mark.parametrize(("file", "key", "component"), WRONG)
def test_a_wrong_shape_is_named(model: Path, file: str, key: str, component: str) -> None:
    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        shapes.extend([tensors[key].shape, tensors[key][:-1].shape])
        tensors[key] = tensors[key][:-1].contiguous()

    shapes: list[torch.Size] = []
    changed(model / file, shorten)
    expected, found = (" × ".join(map(str, shape)) for shape in shapes)
    message = refusal(model)
    assert f"{model / file}: {key} of {component} has the shape {found}" in message
    assert f"means {expected}" in message


@pytest.mark.parametrize(("file", "key", "component"), WRONG)
def test_missing_weights_are_not_made_up(model: Path, file: str, key: str, component: str) -> None:
    changed(model / file, lambda tensors: tensors.pop(key))
    message = refusal(model)
    assert f"The weights of {component} in {model / component} lack {key}" in message


def test_a_configuration_of_another_model_is_noticed(model: Path) -> None:
    path = model / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": 3}))
    assert "and 26 more" in refusal(model) or "more, which" in refusal(model)


def test_a_single_file_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    file = shutil.copy(model / ENCODER, tmp_path / "other.safetensors")
    message = refusal(model, transformer_path=str(file))
    assert f"{file} cannot be loaded as transformer" in message


@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_a_single_file_with_a_wrong_shape_is_refused(
    wide: Path, model: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"wan.{suffix}"
    if suffix == "gguf":
        write_gguf(wide / TRANSFORMER, file)
    else:
        shutil.copy(wide / TRANSFORMER, file)
    message = refusal(model, transformer_path=str(file))
    assert str(file) in message
    assert "has the shape" in message


def test_a_class_whose_files_diffusers_does_not_read(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    from safelight.models import quantized

    with pytest.raises(ConfigError, match="diffusers does not read for AutoencoderTiny"):
        quantized.single_file(
            AutoencoderTiny, tmp_path / "a.safetensors", tmp_path, "transformer", torch.float32
        )


def test_no_module_that_a_model_names_is_imported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing runs code; diffusers does not do it either."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "bystander.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    index = json.loads((model / "model_index.json").read_text())
    index["vae"] = ["bystander", "AutoencoderKLWan"]
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"bystander\.AutoencoderKLWan"):
        load(model)
