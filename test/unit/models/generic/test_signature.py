"""diffusers' source, read without importing it, says what diffusers itself says."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest

from safelight.errors import ConfigError
from safelight.models.generic import calls, signature
from safelight.models.generic.calls import Call
from safelight.models.generic.signature import Default

CLASSES = """
AllegroPipeline AnimateDiffPipeline AuraFlowPipeline ChromaPipeline CogVideoXPipeline
CogVideoXImageToVideoPipeline CogView3PlusPipeline CogView4Pipeline FluxFillPipeline
Cosmos2TextToImagePipeline CosmosTextToWorldPipeline EasyAnimatePipeline HiDreamImagePipeline
HunyuanDiTPipeline HunyuanVideoPipeline HunyuanVideoFramepackPipeline Kandinsky3Pipeline
Kandinsky5T2VPipeline KandinskyV22CombinedPipeline LTXPipeline LTXConditionPipeline LattePipeline
Lumina2Pipeline MochiPipeline OmniGenPipeline PixArtSigmaPipeline SanaPipeline SkyReelsV2Pipeline
StableDiffusionPipeline StableDiffusionInpaintPipeline StableDiffusion3Pipeline
StableVideoDiffusionPipeline WanVACEPipeline
""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", CLASSES)
def test_parameters_and_defaults_are_those_of_the_class(name: str) -> None:
    read = signature.read(name)
    assert read is not None
    kind = getattr(diffusers, name)
    declared = inspect.signature(kind.__call__).parameters
    assert list(read.parameters) == [key for key in declared if key not in ("self", "kwargs")]
    for key, value in read.parameters.items():
        if value is Default.UNKNOWN:
            continue
        expected: Any = declared[key].default
        assert value == (Default.REQUIRED if expected is inspect.Parameter.empty else expected), key
    parts = inspect.signature(kind.__init__).parameters
    assert [*read.components, *read.optional] == [key for key in parts if key != "self"]


def test_siblings_are_those_of_auto_pipeline() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, for Kolors
        from diffusers.pipelines import auto_pipeline
    assert signature.siblings("StableDiffusionPipeline") == [
        auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING["stable-diffusion"].__name__,
        auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING["stable-diffusion"].__name__,
    ]
    assert signature.siblings("LTXPipeline") == ["LTXImageToVideoPipeline"]
    assert signature.siblings("MochiPipeline") == []
    tables = signature.mappings()
    for name in signature.MAPPINGS:
        table = getattr(auto_pipeline, f"AUTO_{name}_PIPELINES_MAPPING")
        ours = {key: value for key, value in tables[name].items() if key in table}
        assert ours == {key: value.__name__ for key, value in table.items()}


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("MochiPipeline", ("text-to-video",)),
        ("LattePipeline", ("text-to-video",)),  # `video_length`
        ("StableVideoDiffusionPipeline", ("image-to-video",)),
        ("CogVideoXImageToVideoPipeline", ("image-to-video",)),
        ("StableDiffusionImg2ImgPipeline", ("image-to-image",)),
        ("StableDiffusionControlNetPipeline", ("image-to-image",)),
        ("CogView4ControlPipeline", ("image-to-image",)),
        ("FluxFillPipeline", ("inpainting",)),
        ("Flux2Pipeline", ("text-to-image", "image-to-image")),
        ("Cosmos3OmniPipeline", ("text-to-video", "image-to-video")),
        ("Kandinsky5T2IPipeline", ("text-to-image",)),
        ("KandinskyV22CombinedPipeline", ("text-to-image",)),
    ],
)
def test_tasks_follow_from_the_parameters(name: str, tasks: tuple[str, ...]) -> None:
    read = signature.read(name)
    assert read is not None
    assert Call(read).tasks() == tasks


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("StableAudioPipeline", "makes audios"),
        ("KandinskyV22Pipeline", "wants image_embeds, negative_image_embeds"),
        ("CogVideoXVideoToVideoPipeline", "wants video"),
        ("WanVideoToVideoPipeline", "wants video"),
        ("CogVideoXFunControlPipeline", "wants control_video"),
        ("StableDiffusionControlNetImg2ImgPipeline", "wants control_image beside image"),
        ("DDPMPipeline", "takes neither a prompt nor a picture"),
        ("DiTPipeline", "wants class_labels"),
        ("MarigoldDepthPipeline", "makes latent, prediction, uncertainty"),
    ],
)
def test_what_no_request_can_ask_for_is_refused(name: str, why: str) -> None:
    read = signature.read(name)
    assert read is not None
    with pytest.raises(ConfigError, match=why):
        Call(read).tasks()


def test_pipelines_that_change_their_model_are_not_interleaved() -> None:
    plain, perturbed = map(signature.read, ("SanaPipeline", "SanaPAGPipeline"))
    assert plain is not None
    assert perturbed is not None
    assert Call(plain).stepped
    assert not Call(perturbed).stepped


def test_a_class_that_diffusers_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "MadeUpPipeline"}')
    with pytest.raises(ConfigError) as refused:
        calls.calls_of(tmp_path)
    for word in ("MadeUpPipeline", diffusers.__version__, "safelight.families"):
        assert word in str(refused.value)


def test_reading_imports_no_torch() -> None:
    script = (
        "import sys\nfrom safelight.models.generic import spec, signature\n"
        "assert signature.read('MochiPipeline') and signature.siblings('LTXPipeline')\n"
        "print(*sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
