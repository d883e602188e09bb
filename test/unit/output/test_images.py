"""Pictures are decoded again and compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes.shared_memory import clip
from safelight.errors import GenerationFailed
from safelight.output import images

PICTURE = clip(1, 48, 33)[0]


def decoded(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def error(image: Image.Image) -> float:
    """Mean absolute difference to the original, of 255."""
    return float(np.abs(np.asarray(image).astype(int) - PICTURE.astype(int)).mean())


def test_png_keeps_every_pixel_and_the_parameters(tmp_path: Path) -> None:
    parameters = {"prompt": "a red circle", "seed": "7", "negative_prompt": "без 雨\nno blur"}
    target = tmp_path / "a.part"
    images.encode(PICTURE, target, format="png", compression=0, parameters=parameters)
    image = decoded(target)
    assert image.format == "PNG"
    assert np.array_equal(np.asarray(image), PICTURE)
    assert image.info == parameters


def test_png_text_is_latin_1_where_that_is_enough(tmp_path: Path) -> None:
    target = tmp_path / "a.part"
    parameters = {"prompt": "café", "other": "雨"}
    images.encode(PICTURE, target, format="png", compression=0, parameters=parameters)
    data = target.read_bytes()
    assert b"tEXtprompt\0caf\xe9" in data
    assert b"iTXtother\0" in data


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_jpeg_and_webp_are_close_and_obey_quality(
    format: images.ImageFormat, tmp_path: Path
) -> None:
    sizes = {}
    for quality in (0, 30, 95, 100):
        target = tmp_path / f"{quality}.part"
        images.encode(PICTURE, target, format=format, compression=quality, parameters={"a": "b"})
        sizes[quality] = target.stat().st_size
        image = decoded(target)
        assert image.format == format.upper()
        assert image.size == (33, 48)
        if quality >= 95:
            assert error(image) < 3
    assert sizes[0] < sizes[30] < sizes[95] < sizes[100]


@pytest.mark.parametrize("keyword", ["", "k" * 80, "ключ", "a\0b"])
def test_a_keyword_png_cannot_hold_is_refused(keyword: str, tmp_path: Path) -> None:
    with pytest.raises(GenerationFailed, match="cannot name a PNG text chunk"):
        images.encode(
            PICTURE, tmp_path / "a", format="png", compression=0, parameters={keyword: "x"}
        )


def test_a_full_disk_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No space left"):
        images.encode(PICTURE, Path("/dev/full"), format="png", compression=0, parameters={})
