"""Fidelity: LTX-2 through the adapter against diffusers' own pipelines, frames and sound."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers import LTX2ImageToVideoPipeline, LTX2Pipeline
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf
from diffusers.utils import is_av_available

from fakes import cases, zoo_ltx2
from fakes.cases import Stepper
from fakes.parity import CPU
from fakes.ranks import RankPool
from safelight.models.ltx2 import adapter, compression, guidance
from safelight.models.ltx2.adapter import LTX2Family
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec

TEXT, PICTURE = zoo_ltx2.CASES
BATCHED = 1e-4  # of batched samples' latents and sound, of about 1
RANKS = 1e-4  # of two ranks' sound


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo_ltx2.tiny_ltx2(tmp_path_factory.mktemp("ltx2") / "model")


@pytest.fixture(scope="module")
def family(model: Path) -> LTX2Family:
    found = cases.loaded(model)
    assert isinstance(found, LTX2Family)
    return found


@pytest.fixture(autouse=True)
def same_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    zoo_ltx2.compress_without_pyav(monkeypatch)


def made(family: LTX2Family, spec: SampleSpec) -> tuple[np.ndarray, np.ndarray]:
    """Frames and sound of one sample alone."""
    stepper = Stepper(family, Mesh.single(CPU))
    stepper.begin(spec)
    frames = stepper.finish(spec.id)
    return frames, stepper.sound[spec.id]


def heard(result: Any) -> np.ndarray:
    """The pipeline's sound, [samples, channels]."""
    sound: np.ndarray = result.audio[0].float().numpy().T
    return sound


@pytest.mark.parametrize(
    ("case", "values"),
    [
        (TEXT, {}),
        (TEXT, {"guidance_scale": 1.0, "num_inference_steps": 2}),
        (TEXT, {"num_frames": 17, "fps": 30, "width": 96, "num_inference_steps": 2}),
        (TEXT, {"num_frames": 1, "max_sequence_length": 64, "num_inference_steps": 2}),
        (PICTURE, {}),
        (PICTURE, {"num_frames": 1, "num_inference_steps": 2}),
    ],
    ids=["text", "no guidance of the video", "longer", "one frame", "picture", "only a picture"],
)
def test_frames_and_sound_are_the_pipelines(
    family: LTX2Family, model: Path, case: cases.Case, values: dict[str, Any]
) -> None:
    spec = cases.sample(case, model, **values)
    expected = zoo_ltx2.ltx2_call(model, spec)
    frames, sound = made(family, spec)
    assert np.array_equal(frames, zoo_ltx2.as_bytes(expected.frames[0]))
    assert np.array_equal(sound, heard(expected))
    assert sound.dtype == np.float32
    assert frames.std() > 1
    assert sound.std() > 0.05, "silence proves nothing"


def test_the_sound_follows_prompt_seed_and_rate(family: LTX2Family, model: Path) -> None:
    spec = cases.sample(TEXT, model, num_inference_steps=2)
    _, base = made(family, spec)
    _, other_words = made(family, msgspec.structs.replace(spec, prompt="two loud squares"))
    _, other_noise = made(family, cases.sample(TEXT, model, num_inference_steps=2, seed=8))
    _, slower = made(family, cases.sample(TEXT, model, num_inference_steps=2, fps=12))
    assert np.abs(base - other_words).max() > 1e-3
    assert np.abs(base - other_noise).max() > 0.01
    assert len(base) < len(slower)
    assert family.pipeline.vocoder.config.output_sampling_rate == zoo_ltx2.RATE


def test_the_bits_hold_in_half_precision(model: Path) -> None:
    half = (("dit_precision", "bf16"), ("vae_precision", "bf16"))
    family = cases.loaded(model, half)
    spec = cases.sample(TEXT, model, num_inference_steps=2)
    frames, sound = made(family, spec)
    expected = zoo_ltx2.ltx2_run(family.pipeline, spec)
    assert np.array_equal(frames, zoo_ltx2.as_bytes(expected.frames[0]))
    assert np.array_equal(sound, heard(expected))
    pictured = cases.sample(PICTURE, model, num_inference_steps=2)
    pipeline = LTX2ImageToVideoPipeline(**family.pipeline.components)
    frames, _ = made(family, pictured)
    expected = zoo_ltx2.ltx2_run(pipeline, pictured)
    assert np.array_equal(frames, zoo_ltx2.as_bytes(expected.frames[0]))
    # With the VAE in float32, as on CUDA, which the pipeline cannot do, they are made too.
    family.pipeline.vae.float()
    assert np.abs(made(family, pictured)[0].astype(int) - frames).mean() < 5


def test_attention_is_left_out_where_the_transformer_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transformer as of LTX-2.3, and a block that it has."""
    gates = {"gated_attn": True, "audio_gated_attn": True}
    modulated = {"cross_attn_mod": True, "audio_cross_attn_mod": True}
    model = zoo_ltx2.tiny_ltx2(
        tmp_path / "model", perturbed_attn=True, rope_type="split", **gates, **modulated
    )
    family = cases.loaded(model)
    spec = cases.sample(PICTURE, model, num_inference_steps=2)
    without, _ = made(family, spec)
    monkeypatch.setattr(adapter, "PERTURBED_BLOCKS", [1])
    frames, sound = made(family, spec)
    expected = zoo_ltx2.ltx2_call(model, spec, spatio_temporal_guidance_blocks=[1])
    assert np.array_equal(frames, zoo_ltx2.as_bytes(expected.frames[0]))
    assert np.array_equal(sound, heard(expected))
    assert not np.array_equal(frames, without)


def test_other_guidance_is_the_pipelines_default() -> None:
    for kind in (LTX2Pipeline, LTX2ImageToVideoPipeline):
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(kind.__call__).parameters.items()
        }
        assert defaults["audio_guidance_scale"] == guidance.SOUND_SCALE
        for prefix in ("", "audio_"):
            assert defaults[f"{prefix}stg_scale"] == guidance.PERTURBED_SCALE
            assert defaults[f"{prefix}modality_scale"] == guidance.ISOLATED_SCALE
            assert defaults[f"{prefix}guidance_rescale"] == guidance.RESCALE
        assert defaults["spatio_temporal_guidance_blocks"] == guidance.PERTURBED_BLOCKS
        assert defaults["use_cross_timestep"] is True
        assert (defaults["noise_scale"], defaults["motion_speed"]) == (0.0, 1.0)
        assert (defaults["decode_timestep"], defaults["decode_noise_scale"]) == (0.0, None)


@pytest.mark.parametrize("case", [TEXT, PICTURE], ids=["text", "picture"])
def test_a_batch_is_three_forwards(
    family: LTX2Family, model: Path, case: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three samples at different steps, of different lengths, guidance and prompts."""
    specs = [
        msgspec.structs.replace(
            cases.sample(case, model, f"{i}.0", num_inference_steps=2 + i, seed=i, **values),
            prompt="a red circle" * (1 + i),
        )
        for i, values in enumerate([{}, {"guidance_scale": 1.0}, {"negative_prompt": "dull"}])
    ]
    assert len({spec.batch_key for spec in specs}) == 1
    stepper = Stepper(family, Mesh.single(CPU))
    stepper.begin(*specs)
    stepper.step("2.0")
    stepper.step("1.0")
    rows: list[int] = []
    forward = family.transformer.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(kwargs["hidden_states"]))
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(family.transformer, "forward", counted)
        stepper.step("0.0", "1.0", "2.0", count=2)
    assert rows == [6, 3, 3] * 2
    sessions = stepper.executor._sessions
    stepper.step("2.0", count=stepper.left("2.0"))
    for spec in specs:
        alone = Stepper(family, Mesh.single(CPU))
        alone.begin(spec)
        alone.step(spec.id, count=alone.left(spec.id))
        own, batched = alone.executor._sessions[spec.id], sessions[spec.id]
        assert (own.latents - batched.latents).abs().max() <= BATCHED
        assert (own.sound - batched.sound).abs().max() <= BATCHED


def test_the_first_picture_is_held_and_matters(family: LTX2Family, model: Path) -> None:
    spec = cases.sample(PICTURE, model)
    (picture,) = spec.inputs.images
    other = cases.picture(model.parent, picture.size, seed=9)
    changed = msgspec.structs.replace(
        spec, inputs=msgspec.structs.replace(spec.inputs, images=(other,))
    )
    stepper = Stepper(family, Mesh.single(CPU))
    stepper.begin(spec, msgspec.structs.replace(changed, id="b.0"))
    one, two = (stepper.executor._sessions[name] for name in (spec.id, "b.0"))
    first = one.latents[:, : one.held].clone()
    assert one.held == 4  # of 2 x 2 latents
    assert not torch.equal(first, two.latents[:, :4])
    assert torch.equal(one.latents[:, 4:], two.latents[:, 4:]), "the noise is the seed's"
    stepper.step(spec.id, "b.0", count=2)
    assert torch.equal(one.latents[:, :4], first)
    assert (one.latents[:, 4:] - two.latents[:, 4:]).abs().max() > 0.01


def test_pictures_and_prompts_are_encoded_once(family: LTX2Family, model: Path) -> None:
    spec = cases.sample(PICTURE, model, seed=3)
    with torch.inference_mode():
        family.encode(spec)
        before = (family._prompts.misses, family._pictures.misses)
        family.encode(msgspec.structs.replace(spec, id="b.0"))
    assert (family._prompts.misses, family._pictures.misses) == before


# ------------------------------------------------------------------------------------ compression


@pytest.mark.parametrize("size", [(48, 80), (97, 161)])
def test_a_picture_is_compressed_as_video_is(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    pixels[: size[0] // 2] = [200, 30, 60]
    even = tuple(side // 2 * 2 for side in size)
    fine, coarse = (compression.with_ffmpeg(pixels, crf) for crf in (18, 33))
    losses = [
        np.abs(got.astype(int) - pixels[: even[0], : even[1]]).mean() for got in (fine, coarse)
    ]
    assert fine.shape == coarse.shape == (*even, 3)
    assert 0 < losses[0] < losses[1]
    assert np.abs(coarse[4:16, 8:32].astype(int) - [200, 30, 60]).max() < 8, "colours survive"
    if is_av_available():
        assert np.array_equal(apply_image_conditioning_crf(pixels, 33), coarse)


# ----------------------------------------------------------------------------------- several ranks


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        (TEXT, (("cfg_parallel_size", 2),)),
        (TEXT, (("ulysses_degree", 2),)),
        (PICTURE, (("ulysses_degree", 2), ("vae_parallel", "on"))),
    ],
    ids=["cfg", "ulysses", "ulysses, picture"],
)
def test_two_ranks_make_the_same_sound(
    model: Path, two_ranks: RankPool, case: cases.Case, layout: tuple[tuple[str, Any], ...]
) -> None:
    path = (("model_path", str(model)),)
    spec = cases.sample(case, model, num_inference_steps=2)
    expected = zoo_ltx2.sounds(0, path, spec)
    first, second = two_ranks.run(zoo_ltx2.sounds, (*path, *layout), spec)
    assert np.array_equal(first[0], second[0]), "ranks hold different latents"
    for mine, reference in zip(first, expected, strict=True):
        assert np.abs(mine - reference).max() <= RANKS
