"""Broken checkpoints are refused before anything starts, with the file and what to do."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from fakes.single_files import write_gguf
from safelight.errors import ConfigError
from safelight.models import checkpoint

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tiny_wan_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_wan_directory, tmp_path / "model")


def refusal(model: Path, elsewhere: dict[str, Path] | None = None) -> str:
    with pytest.raises(ConfigError) as failure:
        checkpoint.verify(model, elsewhere)
    message = failure.value.message
    assert "\n" not in message
    return message


def change_index(model: Path, **entries: object) -> None:
    path = model / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_whole_checkpoint_is_fine(model: Path) -> None:
    checkpoint.verify(model)


@pytest.mark.parametrize(
    "name",
    [
        *("model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"),
        *(TRANSFORMER, "text_encoder/model.safetensors", "text_encoder/config.json"),
    ],
)
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    message = refusal(model)
    assert str(model / name) in message
    assert "Fetch it again" in message


@pytest.mark.parametrize("name", ["transformer", "tokenizer", "vae"])
def test_a_missing_component_is_named(model: Path, name: str) -> None:
    shutil.rmtree(model / name)
    assert f"{model / name} is missing" in refusal(model)
    (model / name).mkdir()
    assert str(model / name) in refusal(model)


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_json_that_is_none_is_named(model: Path, name: str, content: str) -> None:
    (model / name).write_bytes(content.encode("latin-1"))
    message = refusal(model)
    assert str(model / name) in message
    assert "is empty" in message or "is not a JSON object" in message


@pytest.mark.parametrize("kept", [0, 7, 40, 5000, -1])
def test_truncated_weights_are_named(model: Path, kept: int) -> None:
    path = model / TRANSFORMER
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(model)
    assert str(path) in message
    assert any(w in message for w in ("is cut short", "is empty", "is too short"))


def test_bytes_too_many_are_noticed(model: Path) -> None:
    with (model / TRANSFORMER).open("ab") as file:
        file.write(b"123")
    assert "has 3 bytes too many" in refusal(model)


@pytest.mark.parametrize(
    "header",
    [
        b"[1]",
        b"no json",
        b'{"a": {}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
    ],
)
def test_a_header_of_something_else_is_named(model: Path, header: bytes) -> None:
    (model / TRANSFORMER).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert f"{model / TRANSFORMER} is not a safetensors file" in refusal(model)


def test_git_lfs_pointers_are_recognised(model: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for name in ("vae/config.json", TRANSFORMER):
        (model / name).write_text(pointer)
        message = refusal(model)
        assert str(model / name) in message
        assert "git lfs pull" in message
        shutil.copy(model / "text_encoder/config.json", model / name)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickles_are_refused(model: Path, name: str) -> None:
    (model / TRANSFORMER).rename(model / "transformer" / name)
    message = refusal(model)
    assert f"{model / 'transformer' / name} is not safetensors" in message
    assert "save_pretrained(safe_serialization=True)" in message


def test_pickles_beside_safetensors_do_not_matter(model: Path) -> None:
    (model / "transformer" / "diffusion_pytorch_model.bin").touch()
    checkpoint.verify(model)


def test_weights_of_a_variant_only_are_named(model: Path) -> None:
    path = (model / TRANSFORMER).rename(model / "transformer" / "weights.fp16.safetensors")
    message = refusal(model)
    assert str(path) in message
    assert "Rename it to diffusion_pytorch_model.safetensors" in message


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_an_unknown_class_is_named(model: Path, library: str) -> None:
    change_index(model, vae=[library, "AutoencoderKLNowhere"])
    message = refusal(model)
    assert str(model / "model_index.json") in message
    assert "AutoencoderKLNowhere" in message
    assert f"{library} " in message


def test_an_unknown_library_is_named(model: Path) -> None:
    change_index(model, vae=["no_such_library", "Vae"])
    assert "there is no module no_such_library" in refusal(model)


@pytest.mark.parametrize(
    "kind",
    [
        *("T5TokenizerFast", "CLIPTokenizerFast", "CLIPFeatureExtractor", "Qwen2VLProcessor"),
        *("UMT5EncoderModel", "CLIPTextModelWithProjection", "TokenizersBackend"),
        *("SiglipImageProcessor", "LlamaForCausalLM", "Qwen2_5_VLForConditionalGeneration"),
    ],
)
def test_classes_that_pipelines_name_are_known(kind: str) -> None:
    assert checkpoint._has_word("transformers", kind)


def test_code_of_the_model_needs_the_flag(model: Path) -> None:
    change_index(model, vae=["own", "Vae"])
    (model / "vae" / "own.py").write_text("")
    message = refusal(model)
    assert str(model / "vae" / "own.py") in message
    assert "--trust-remote-code" in message
    checkpoint.verify(model, trust_remote_code=True)


def test_a_pipeline_of_its_own_is_refused(model: Path) -> None:
    change_index(model, _class_name=["pipeline", "Mine"])
    assert "a pipeline of its own, Mine" in refusal(model)
    change_index(model, _class_name=None)
    assert "names no pipeline class" in refusal(model)


def test_every_shard_and_every_tensor_must_be_there(model: Path) -> None:
    folder = model / "transformer"
    shard = (model / TRANSFORMER).rename(folder / "part-1.safetensors")
    names = dict.fromkeys(checkpoint.safetensors_header(shard), shard.name)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    checkpoint.verify(model)
    assert checkpoint.weight_files(folder) == [shard]
    index.write_text(json.dumps({"weight_map": {**names, "more": shard.name}}))
    assert f"{shard} lacks more" in refusal(model)
    index.write_text(json.dumps({"weight_map": {**names, "more": "part-2.safetensors"}}))
    assert f"{folder / 'part-2.safetensors'} cannot be read" in refusal(model)
    index.write_text("{}")
    assert f"{index} has no weight_map" in refusal(model)


def test_components_from_elsewhere_are_checked_instead(model: Path, tmp_path: Path) -> None:
    other = Path(shutil.move(model / "vae", tmp_path / "other"))
    checkpoint.verify(model, {"vae": other})
    (other / "diffusion_pytorch_model.safetensors").unlink()
    assert str(other) in refusal(model, {"vae": other})


def test_a_single_file_needs_the_configuration_only(model: Path, tmp_path: Path) -> None:
    file = (model / TRANSFORMER).rename(tmp_path / "wan.safetensors")
    checkpoint.verify(model, {"transformer": file})
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file} is cut short" in refusal(model, {"transformer": file})
    assert "is not safetensors" in refusal(model, {"transformer": tmp_path / "wan.ckpt"})


def test_gguf_files_are_checked(model: Path, tmp_path: Path) -> None:
    file = write_gguf(model / TRANSFORMER, tmp_path / "wan.gguf")
    checkpoint.verify(model, {"transformer": file})
    whole = file.read_bytes()
    for kept in (10, 2000, len(whole) - 5000):
        file.write_bytes(whole[:kept])
        assert f"{file} is not a whole GGUF file" in refusal(model, {"transformer": file})
    file.write_bytes(b"GGML" + whole[4:])
    assert f"{file} is not a GGUF file" in refusal(model, {"transformer": file})
    assert "cannot be read" in refusal(model, {"transformer": tmp_path / "none.gguf"})


@pytest.mark.parametrize(
    "entry",
    [
        {"scheduler": "ab"},
        {"scheduler": {"diffusers": 1, "UniPCMultistepScheduler": 2}},
        {"../scheduler": ["diffusers", "UniPCMultistepScheduler"]},
        {"scheduler": ["", "UniPCMultistepScheduler"]},
        {"scheduler": ["..", "UniPCMultistepScheduler"]},
        {"scheduler": ["diffusers", "a/b"]},
        {"scheduler": ["diffusers", None]},
    ],
)
def test_entries_that_no_pipeline_writes_are_refused(model: Path, entry: dict[str, object]) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | entry))
    message = refusal(model)
    assert "model_index.json" in message
    assert "no pipeline writes" in message


def test_settings_of_a_pipeline_are_no_components(model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    settings = {"layers": [1, 2], "safe": False, "ratio": None, "name": "abc", "none": [None, None]}
    (model / "model_index.json").write_text(json.dumps(index | settings))
    checkpoint.verify(model)


@pytest.mark.parametrize("shard", ["evil.bin", "../../other.safetensors", "/etc/x.safetensors"])
def test_shards_lie_beside_their_index(model: Path, shard: str) -> None:
    folder = model / "transformer"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    assert "not a safetensors file beside it" in refusal(model)
