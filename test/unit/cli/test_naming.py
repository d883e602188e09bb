"""Names of output files: never the same twice in a run, never a surprise."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.cli import naming
from safelight.errors import ConfigError


def names(plan: list[list[Path]]) -> list[list[str]]:
    return [[path.name for path in paths] for paths in plan]


def test_one_file_has_the_name_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()  # replaced, as asked
    plan = naming.destinations(tmp_path, "clip.mp4", "mp4", ["x"], 1)
    assert plan == [[tmp_path / "clip.mp4"]]


def test_several_files_have_an_index(tmp_path: Path) -> None:
    plan = naming.destinations(tmp_path, "clip.mp4", "mp4", ["x", "y"], 2)
    assert names(plan) == [["clip-1.mp4", "clip-2.mp4"], ["clip-3.mp4", "clip-4.mp4"]]


def test_without_a_name_the_prompt_is_one_and_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a-red-circle.mp4").touch()
    plan = naming.destinations(tmp_path, None, "mp4", ["A red circle!", "a red  circle"], 2)
    assert names(plan) == [
        ["a-red-circle-1.mp4", "a-red-circle-2.mp4"],
        ["a-red-circle-3.mp4", "a-red-circle-4.mp4"],
    ]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("x", "x.png"), ("雨", "output.png"), ("../../etc/passwd", "etc-passwd.png")],
)
def test_any_prompt_makes_a_plain_name(prompt: str, name: str, tmp_path: Path) -> None:
    assert names(naming.destinations(tmp_path, None, "png", [prompt], 1)) == [[name]]


def test_a_long_prompt_makes_a_short_name(tmp_path: Path) -> None:
    [[name]] = names(naming.destinations(tmp_path, None, "png", ["word " * 500], 1))
    assert len(name) <= 64


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert naming.destinations(Path("outputs"), "a.mp4", "mp4", ["x"], 1) == [
        [tmp_path / "outputs" / "a.mp4"]
    ]


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.mp4", "mp4"), ("a.PNG", "png"), ("a.jpg", "jpeg"), ("a.jpeg", "jpeg"), ("a.webp", "webp")],
)
def test_the_extension_is_the_format(name: str, format: str) -> None:
    assert naming.format_of(name) == format


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.gif", r"'\.gif' is not known in 'a\.gif'; \.mp4, \.png"),
        ("a", "no extension"),
        ("b/a.mp4", "--output-path"),
        ("../a.mp4", "--output-path"),
    ],
)
def test_a_name_that_does_not_fit_says_what_does(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        naming.format_of(name)


def test_formats_hold_what_they_can() -> None:
    naming.check_fits("mp4", 9)
    naming.check_fits("png", 1)
    with pytest.raises(ConfigError, match=r"\.png, \.jpg, \.jpeg, \.webp fit"):
        naming.check_fits("mp4", 1)
    with pytest.raises(ConfigError, match=r"a png file holds one frame, not 9: use \.mp4"):
        naming.check_fits("png", 9)
