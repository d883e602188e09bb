"""Tiles, slices, attention backends and compiled blocks of loaded parts."""

from __future__ import annotations

import copy
import functools
import re
import shutil
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    WanTransformer3DModel,
)

from safelight.builtin import builtin_model
from safelight.config import ModelConfig, build
from safelight.errors import ConfigError
from safelight.models.tuning import tune

CPU = torch.device("cpu")


def tuned(name: str, part: Any, **settings: Any) -> Any:
    tune({name: part}, ModelConfig(**settings), CPU)
    return part


@pytest.fixture(scope="module")
def transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(
        builtin_model("shapes"), subfolder="transformer", dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(
        builtin_model("shapes"), subfolder="vae", dtype=torch.float32
    ).eval()


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = WanTransformer3DModel.load_config(builtin_model("shapes"), subfolder="transformer")
    return {
        "hidden_states": torch.randn(1, config["in_channels"], 2, 8, 8),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, config["text_dim"]),
    }


def test_by_default_nothing_is_changed(vae: AutoencoderKLWan) -> None:
    before = dict(vars(vae))
    assert vars(tuned("vae", vae)) == before


def test_tiles_have_strides_that_leave_no_gaps(vae: AutoencoderKLWan) -> None:
    """diffusers' own stride is 192 pixels: tiles of 64 would leave most of the picture out."""
    tiles = {"tile_sample_min_height": 64, "tile_sample_min_width": 64}
    tiled = tuned("vae", copy.deepcopy(vae), vae_tiling=True, vae_config=tiles)
    ramp = torch.linspace(-1, 1, 256).expand(1, 3, 1, 256, 256).contiguous()
    with torch.inference_mode():
        latents = vae.encode(ramp).latent_dist.mode()
        whole, parts = vae.decode(latents).sample, tiled.decode(latents).sample
    assert parts.shape == whole.shape
    assert not torch.equal(parts, whole)
    assert (parts - whole).abs().mean() < 0.1 * whole.abs().mean()


def test_tiles_of_a_vae_without_strides() -> None:
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    tuned("vae", vae, vae_tiling=True, vae_config={"tile_sample_min_height": 64})
    assert (vae.use_tiling, vae.tile_sample_min_height) == (True, 64)


def test_tiles_without_a_size_are_diffusers_own(vae: AutoencoderKLWan) -> None:
    tiled = tuned("vae", copy.deepcopy(vae), vae_tiling=True, vae_slicing=True)
    assert (tiled.use_tiling, tiled.use_slicing) == (True, True)
    assert tiled.tile_sample_stride_height == vae.tile_sample_stride_height


def test_a_size_that_a_vae_does_not_take_is_refused() -> None:
    picture = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    with pytest.raises(ConfigError, match="tiles of AutoencoderKL have a size of their own"):
        tuned("vae", picture, vae_tiling=True, vae_config={"tile_sample_min_height": 64})


@pytest.mark.parametrize(
    "values", [{"tile_sample_min_height": 3}, {"tile_height": 64}, {"load_decoder": False}]
)
def test_a_wrong_vae_config_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        build({"vae_config": values})


def test_attention_is_computed_by_the_backend_of_that_name(
    transformer: WanTransformer3DModel,
) -> None:
    with torch.inference_mode():
        before = transformer(**inputs()).sample
    other = tuned("transformer", transformer, attention_backend="_native_math")
    kinds = {block.attn1.processor._attention_backend for block in other.blocks}
    with torch.inference_mode():
        after = other(**inputs()).sample
    tuned("transformer", transformer, attention_backend="native")
    assert kinds == {"_native_math"}
    assert (after - before).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("flash", "--attention-backend flash: "),
        ("fast", "--attention-backend fast is not known; diffusers"),
        ("sage_hub", "--attention-backend sage_hub runs code from the hub"),
    ],
)
def test_a_backend_that_cannot_be_is_refused(
    backend: str, message: str, transformer: WanTransformer3DModel
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        tuned("transformer", transformer, attention_backend=backend)


def test_compiled_blocks_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as ever, but not made into C++: that takes a minute."""
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    torch.manual_seed(0)
    plain = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
    ).eval()
    compiled = tuned("transformer", copy.deepcopy(plain), enable_torch_compile=True)
    given = {
        "hidden_states": torch.randn(1, 4, 1, 8, 8),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, 8),
    }
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        before, after = plain(**given).sample, compiled(**given).sample
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert (after - before).abs().max() < 1e-4


def test_without_a_compiler_compiling_is_refused(
    monkeypatch: pytest.MonkeyPatch, transformer: WanTransformer3DModel
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape("needs a C++ compiler")):
        tuned("transformer", transformer, enable_torch_compile=True)
