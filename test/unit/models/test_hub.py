"""Which names mean the hub, what is fetched of a model, and what is left of an interrupted file."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.errors import ConfigError
from safelight.models import hub
from safelight.models.registry import model_directory


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", True),
        ("org/model_1.0", True),
        *(
            (name, False)
            for name in ("/models/wan", "./models/wan", "wan", "a/b/c", "../wan", "~/m")
        ),
        *((name, False) for name in ("", "org/", "org/a b", "builtin:shapes", "org/é")),
    ],
)
def test_hub_names(name: str, expected: bool) -> None:
    assert hub.is_id(name) is expected


def test_a_name_that_was_not_fetched_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="safelight pull org/model"):
        model_directory("org/model")


def test_components_are_fetched_without_what_lies_beside_them() -> None:
    from huggingface_hub.utils import filter_repo_objects

    index = {
        "_class_name": "FluxPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "own": ["mine", "Component"],
        "safety_checker": [None, None],
    }
    wanted = ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    wanted += ["tokenizer/spiece.model", "tokenizer/merges.txt", "own/mine.py", "safelight.json"]
    others = ["flux1-dev.safetensors", "vae/diffusion_pytorch_model.bin", "README.md", "a.ckpt"]
    others += ["safety_checker/model.safetensors", "text_encoders/t5.safetensors", "vae/x.onnx"]
    others += ["tokenizer/code.py", "flax/model.msgpack"]
    found = list(filter_repo_objects([*wanted, *others], allow_patterns=hub._patterns(index)))
    assert found == wanted


def test_the_largest_part_is_continued_and_the_others_go(tmp_path: Path) -> None:
    blob = tmp_path / "abc"
    for name, size in (("abc.1.incomplete", 3), ("abc.2.incomplete", 7), ("abc.3.incomplete", 99)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "abcd.1.incomplete").touch()
    assert hub._partial(blob, 10).name == "abc.2.incomplete"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["abc.2.incomplete", "abcd.1.incomplete"]


def test_progress_adds_up_all_files() -> None:
    told: list[tuple[int, int]] = []
    meter = hub._Meter(lambda done, total: told.append((done, total)))
    meter.begin(10)
    bar = hub._bar(meter)
    with bar(unit="B", desc="a", total=6, initial=2) as one, bar(unit="B", desc="b") as other:
        one.update(4)
        other.update(3)
        other.update(-3)
        other.update(4)
    bar(unit="B", desc="Downloading bytes").update(7)
    bar(total=3).update(1)
    assert told == [(2, 10), (6, 10), (9, 10), (6, 10), (10, 10)]


@pytest.mark.parametrize("etag", ["../../../.bashrc", "/etc/passwd", "", "a" * 10])
def test_what_the_hub_calls_a_content_cannot_be_a_path(etag: str) -> None:
    from huggingface_hub.hf_api import RepoFile

    lfs = {"size": 1, "oid": etag, "pointerSize": 1}
    file = RepoFile(path="vae/a.safetensors", size=1, oid="0" * 40, lfs=lfs)
    with pytest.raises(OSError, match=r"vae/a\.safetensors"):
        hub._etag(file)
