"""What `generate` decides before it starts a process, and tidies up after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safelight.cli import generate
from safelight.cli.generate import GenerateOptions
from safelight.config import EngineConfig
from safelight.errors import ConfigError, InvalidRequest


def plan(sampling: dict[str, Any] | None = None, **options: Any) -> generate.Work:
    options.setdefault("prompt", ["a red circle"])
    return generate.plan(EngineConfig(), sampling or {}, GenerateOptions(**options))


def test_the_model_decides_clip_or_still(tmp_path: Path) -> None:
    work = plan(output_path=str(tmp_path))
    assert work.format == "mp4"
    assert work.destinations == [[tmp_path / "a-red-circle.mp4"]]


def test_one_frame_is_a_png(tmp_path: Path) -> None:
    work = plan({"num_frames": 1}, output_path=str(tmp_path))
    assert work.format == "png"
    assert work.destinations == [[tmp_path / "a-red-circle.png"]]


def test_a_picture_s_name_asks_for_one_frame() -> None:
    work = plan(output_file_name="a.jpg")
    assert work.format == "jpeg"
    assert [path.name for paths in work.destinations for path in paths] == ["a.jpg"]


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds one frame, not 5"):
        plan({"num_frames": 5}, output_file_name="a.png")
    with pytest.raises(ConfigError, match="one frame is a still picture"):
        plan({"num_frames": 1}, output_file_name="a.mp4")


def test_what_the_model_cannot_do_is_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidRequest, match="Nearest"):
        plan({"width": 65})
    with pytest.raises(InvalidRequest, match="'n' is 99"):
        plan(n=99)
    with pytest.raises(InvalidRequest, match="'prompt' is empty"):
        plan(prompt=["  "])


def test_prompts_come_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n  two \n", "utf-8")
    work = plan(prompt=["zero"], prompt_file=str(file))
    assert work.prompts == ["zero", "one", "two"]
    assert len(work.destinations) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "There is no prompt"),
        ({"prompt_file": "/nowhere.txt"}, "cannot read /nowhere.txt"),
        ({"save_output": False}, "generate always saves"),
    ],
)
def test_wrong_options_are_clear_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**options)


def test_only_what_this_run_left_unfinished_is_removed(tmp_path: Path) -> None:
    new = tmp_path / "new"
    kept, old, half = new / "kept", tmp_path / "old", tmp_path / "half"
    old.write_text("from last week")
    half.write_text("from last week")
    with generate._unfinished_removed([[kept], [old, half], [new / "never"]]) as unfinished:
        new.mkdir()
        kept.write_text("done")
        unfinished.discard(kept)
        half.unlink()
        half.write_text("replaced by a job that was then cancelled")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept", "new", "old"]
    assert old.read_text() == "from last week"


def test_an_interrupted_run_takes_its_empty_directory_with_it(tmp_path: Path) -> None:
    path = tmp_path / "outputs" / "a.mp4"
    with pytest.raises(KeyboardInterrupt), generate._unfinished_removed([[path]]):
        path.parent.mkdir()
        path.touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
