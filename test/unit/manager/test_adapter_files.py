"""Which file an administrator means, and what of it is checked before anything is loaded."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.adapters import adapter, header
from fakes.hub import serving
from safelight import config
from safelight.config import LoraConfig
from safelight.errors import ConfigError, InvalidRequest
from safelight.manager import adapter_files


def test_a_file_and_a_directory(tmp_path: Path) -> None:
    style = adapter(tmp_path / "style" / "style.safetensors")
    (style.parent / "README.md").touch()
    assert adapter_files.locate(str(style)) == style
    assert adapter_files.locate(str(style.parent)) == style
    standard = adapter(style.parent / adapter_files.STANDARD)
    assert adapter_files.locate(str(style.parent)) == standard
    assert adapter_files.locate(str(style.parent), "style.safetensors") == style


@pytest.mark.parametrize(
    ("path", "file", "words"),
    [
        ("nowhere", None, "There is no .*nowhere"),
        ("two", None, "not one adapter: it has a.safetensors, b.safetensors"),
        ("two", "c.safetensors", "no 'c.safetensors' in .*: it has a.safetensors"),
        ("two", "../two/a.safetensors", "no '../two/a.safetensors'"),
        ("pickles", None, "x.bin is not safetensors: .*Convert it"),
        ("empty", None, "it has no .safetensors file"),
        ("x\0y", None, "There is no"),
        ("x" * 5000, None, "is no path"),
    ],
)
def test_what_is_not_one_adapter(tmp_path: Path, path: str, file: str | None, words: str) -> None:
    for name in ("a", "b"):
        adapter(tmp_path / "two" / f"{name}.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "x.bin").touch()
    with pytest.raises(InvalidRequest, match=words) as failure:
        adapter_files.locate(f"{tmp_path}/{path}", file)
    assert failure.value.param == "lora_path"


def test_the_home_of_nobody() -> None:
    with pytest.raises(InvalidRequest, match="is no path"):
        adapter_files.locate("~nobody-of-that-name/x")


def test_what_is_checked_of_a_file(tmp_path: Path) -> None:
    good = adapter(tmp_path / "good.safetensors")
    adapter_files.check(good)
    data = good.read_bytes()
    other = header({"transformer.proj.weight": (2, 2)}) + bytes(16)
    for content, words in (
        (data[:-1], "cut short"),
        (data + b"x", "too many"),
        (b"", "is empty"),
        (struct.pack("<Q", 2**40) + b"{" * 100, "its header would have 1099511627776 bytes"),
        (other, "no LoRA weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(InvalidRequest, match=words):
            adapter_files.check(tmp_path / "bad.safetensors")
    for name in ("a.bin", "a.pt", "a.txt"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidRequest, match="safetensors"):
            adapter_files.check(tmp_path / name)


def test_a_directory_of_adapters_is_a_catalog(tmp_path: Path) -> None:
    style = adapter(tmp_path / "style.safetensors")
    face = adapter(tmp_path / "face" / adapter_files.STANDARD)
    for name in ("a", "b"):
        adapter(tmp_path / "several" / f"{name}.safetensors")
    (tmp_path / "x.bin").touch()
    assert adapter_files.catalog(tmp_path) == {"style": style, "face": face}


def test_names_that_nobody_gave(tmp_path: Path) -> None:
    style = adapter(tmp_path / "style" / adapter_files.STANDARD)
    assert adapter_files.name_of(str(style), None) == "style"
    assert adapter_files.name_of("org/name", None) == "org/name"
    assert adapter_files.name_of("org/name", "fast.safetensors") == "fast"
    settings = LoraConfig(lora_dir=str(tmp_path), lora_path="org/name")
    assert adapter_files.names_at_start(settings) == {"style", "org/name"}


@pytest.mark.parametrize("name", ["lora_name", "lora_nickname"])
def test_more_about_no_adapter_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match="says more about --lora-path") as failure:
        config.build({name: "x.safetensors"})
    assert failure.value.param == name


SCRIPT = """
import sys
from safelight.errors import SafelightError
from safelight.manager import adapter_files
for path in sys.argv[1:]:
    try:
        print(adapter_files.locate(*path.split(":")).name)
    except SafelightError as failure:
        print(type(failure).__name__, failure)
"""


def located(home: Path, *paths: str, **variables: str) -> list[str]:
    """In a process of its own: huggingface_hub reads its environment once."""
    environment = {"HF_HOME": str(home), "PATH": "/usr/bin", **variables}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_the_hub_is_asked_once_and_not_when_offline(tmp_path: Path) -> None:
    one = adapter(tmp_path / "one" / "only.safetensors").parent
    for name in ("a", "b"):
        adapter(tmp_path / "two" / f"{name}.safetensors")
    models = {"org/one": one, "org/two": tmp_path / "two"}
    home = tmp_path / "home"
    with serving(models) as hub:
        paths = ("org/one", "org/two:b.safetensors", "org/two:c.safetensors", "org/none")
        first, second, third, fourth = located(home, *paths, HF_ENDPOINT=hub.url)
        assert (first, second) == ("only.safetensors", "b.safetensors")
        assert "InvalidRequest" in third and "it has a.safetensors, b.safetensors" in third
        assert "no repository org/none" in fourth
        assert hub.asked("two/resolve/main/a.safetensors") == []
        asked = len(hub.requests)
        assert located(home, "org/one", HF_ENDPOINT=hub.url) == ["only.safetensors"]
        assert len(hub.requests) == asked
    found, missing = located(home, "org/one", "org/new", HF_HUB_OFFLINE="1")
    assert found == "only.safetensors"
    assert "InvalidRequest" in missing and "HF_HUB_OFFLINE is set" in missing
