"""Input pictures: what is taken, what is refused, and that it costs nothing to refuse."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from safelight.errors import InvalidRequest
from safelight.manager.media import Media, decode

LIMIT = 1_000_000


def saved(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    shape = (size[1], size[0], len(Image.new(mode, (1, 1)).getbands()))
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Image.fromarray(pixels.squeeze(), mode if len(shape) == 3 and shape[2] > 1 else None)


def one(data: bytes, mask: bytes | None = None, limit: int = LIMIT) -> Media:
    return decode([("image", data)], mask, max_pixels=limit)


@pytest.mark.parametrize(("format", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("WEBP", "RGB")])
def test_lossless_files_keep_their_pixels(format: str, mode: str) -> None:
    picture = noise(mode)
    options = {"lossless": True} if format == "WEBP" else {}
    (image,) = one(saved(picture, format, **options)).images
    assert (image.width, image.height, image.mode) == (6, 4, "RGB")
    assert image.pixels == picture.convert("RGB").tobytes()


def test_a_photograph_is_turned_as_its_camera_held_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is at the right
    (image,) = one(saved(noise(), "JPEG", exif=exif)).images
    assert (image.width, image.height) == (4, 6)


def test_equal_pixels_have_equal_digests_whatever_the_file() -> None:
    picture = noise()
    first, second = (one(saved(picture, "PNG", compress_level=c)).images[0] for c in (0, 9))
    assert first.digest == second.digest


def test_a_transparent_part_is_the_mask_if_there_is_no_other() -> None:
    picture = noise("RGBA")
    alpha = np.full((4, 6), 255, np.uint8)
    alpha[:, 3:] = 0
    picture.putalpha(Image.fromarray(alpha))
    media = one(saved(picture))
    inputs = media.inputs("image_1", inpaints=True)
    assert inputs.mask is not None
    white = np.frombuffer(media.files(inputs)[inputs.mask.path], np.uint8).reshape(4, 6)
    assert (white == 255 - alpha).all()
    assert media.inputs("image_1", inpaints=False).mask is None
    assert sorted(media.files(inputs)) == ["image_1/input-0.raw", "image_1/mask.raw"]


@pytest.mark.parametrize("opaque", [True, False])
def test_a_mask_is_white_or_transparent_where_something_changes(opaque: bool) -> None:
    white = np.zeros((4, 6), np.uint8)
    white[1:] = 255
    mask = Image.fromarray(white)
    if not opaque:
        mask = Image.new("RGBA", (6, 4), "red")
        mask.putalpha(Image.fromarray(255 - white))
    media = one(saved(noise()), saved(mask))
    assert media.mask is not None
    assert media.mask.pixels == white.tobytes()


def png_header(width: int, height: int) -> bytes:
    """The head of a PNG that says it is so large, and nothing after it."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    length, checksum = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + length + chunk + checksum


EMPTY = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def bomb() -> bytes:
    """Ten kilobytes that would be hundreds of megabytes."""
    rows = zlib.compress(b"\0" * (9000 * (1 + 3 * 9000)), 9)
    head = png_header(9000, 9000)
    for kind, data in ((b"IDAT", rows), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        head += struct.pack(">I", len(data)) + kind + data + checksum
    return head


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG, JPEG or WebP"),
        (b"GIF89a" + b"\0" * 50, "not a PNG, JPEG or WebP"),
        (b"\x89PNG\r\n\x1a\nrubbish", "broken PNG"),
        (saved(noise(size=(64, 64)), "JPEG")[:-400], "broken JPEG"),
        (png_header(50_000, 50_000) + EMPTY, "too many pixels"),
        (png_header(20_000, 10) + EMPTY, "at most 16384"),
        (png_header(9_000, 9_000) + EMPTY, "81000000 pixels"),
    ],
)
def test_what_cannot_be_taken_is_refused_by_its_field(data: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        one(data)
    assert refused.value.param == "image"
    assert "PIL" not in str(refused.value)


def test_a_bomb_is_refused_before_memory_is_spent() -> None:
    data = bomb()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="81000000 pixels"):
            one(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_limit_is_for_all_pictures_together() -> None:
    data = saved(noise(size=(30, 30)))
    decode([("image", data)] * 2, None, max_pixels=1800)
    with pytest.raises(InvalidRequest, match="2700 pixels in all"):
        decode([("image", data)] * 3, None, max_pixels=1800)


def test_sixteen_bits_of_grey_become_eight() -> None:
    """As depth maps have them; cut off at 255, all but black would be white."""
    deep = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    data = saved(Image.fromarray(deep))
    media = one(data, mask=data)
    assert media.mask is not None
    for pixels, channels in ((media.images[0].pixels, 3), (media.mask.pixels, 1)):
        grey = np.frombuffer(pixels, np.uint8).reshape(4, 6, channels)[..., 0].astype(int)
        assert abs(grey - (deep >> 8)).max() <= 1


@pytest.mark.parametrize("content", [b"", b"a", b"a\0", b"a\0\0" + zlib.compress(b"x")[:3]])
@pytest.mark.parametrize("kind", [b"iCCP", b"gAMA", b"tRNS", b"eXIf", b"acTL", b"zTXt"])
@pytest.mark.parametrize("late", [False, True])
def test_a_broken_chunk_is_the_pictures_fault(content: bytes, kind: bytes, late: bool) -> None:
    """Pillow raises half a dozen kinds of errors for them, in part only when it decodes."""
    whole = saved(noise())
    at = whole.index(b"IEND") - 4 if late else 33
    checked = kind + content
    chunk = struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))
    try:
        one(whole[:at] + chunk + whole[at:])
    except InvalidRequest as refusal:
        assert refusal.code == "invalid_image"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow speaks of it, too
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_spoils_no_picture(format: str, exif: bytes) -> None:
    (image,) = one(saved(noise(), format, exif=exif)).images
    assert (image.width, image.height) == (6, 4)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(noise(), "PNG", exif=exif)
    (image,) = one(data).images
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (image.width, image.height) == expected.size
    assert image.pixels == expected.tobytes()


ZIP = b"PK\x05\x06" + b"\0" * 18
"""An archive without files."""


@pytest.mark.parametrize(
    "data",
    [
        saved(noise()) + b"<script>alert(1)</script>",
        saved(noise()) + ZIP,
        saved(noise(), "WEBP") + b"<?php system($_GET[0]);",
        saved(noise(), "JPEG") + ZIP,
        saved(noise(), "JPEG", comment=b"%PDF-1.7"),
    ],
)
def test_a_polyglot_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="something else in it") as refused:
        one(data)
    assert (refused.value.param, refused.value.code) == ("image", "invalid_image")


SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"


@pytest.mark.parametrize(
    "data",
    [
        saved(noise()) + b"\n",
        saved(noise(), "JPEG") + SCAN * 300,
        saved(noise(), "JPEG", comment=SCAN * 300),
    ],
)
def test_harmless_ends_are_taken(data: bytes) -> None:
    """A line's end behind a PNG; a phone's film behind a JPEG."""
    assert len(one(data).images) == 1


def test_a_jpeg_of_many_scans_is_not_decoded() -> None:
    data = saved(noise(size=(64, 64)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    one(data[:at] + data[at:-2] * 200 + data[-2:])
    with pytest.raises(InvalidRequest, match="scans or frames"):
        one(data[:at] + data[at:-2] * 300 + data[-2:])
    segments = b"\xff\xfe\x00\x03x" * 5000
    with pytest.raises(InvalidRequest, match="scans or frames"):
        one(data[:2] + segments + data[2:])


@pytest.mark.parametrize("format", ["WEBP", "PNG"])
def test_an_animation_of_many_frames_is_not_opened(format: str) -> None:
    pictures = [Image.new("RGB", (4, 4), ("red", "blue")[i % 2]) for i in range(300)]
    with pytest.raises(InvalidRequest, match="scans or frames"):
        one(saved(pictures[0], format, save_all=True, append_images=pictures[1:]))


@pytest.mark.parametrize(("format", "options"), [("WEBP", {"lossless": True}), ("PNG", {})])
def test_of_an_animation_the_first_picture_is_taken(format: str, options: dict[str, bool]) -> None:
    first = noise(size=(8, 8))
    data = saved(first, format, save_all=True, append_images=[first.rotate(90)], **options)
    (image,) = one(data).images
    assert image.pixels == first.convert("RGB").tobytes()
