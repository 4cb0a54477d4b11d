"""Pictures from outside: the good ones decode to RGB, the others are refused in a sentence."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from slimdeploy.errors import DataError
from slimdeploy.images import check_image, load_image


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = load_image(encoded(Image.new(mode, (5, 3))))
    assert (image.mode, image.size) == ("RGB", (5, 3))


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_four_formats_are_read(format_: str) -> None:
    assert load_image(encoded(Image.new("RGB", (4, 4)), format_)).size == (4, 4)


def test_other_formats_are_refused() -> None:
    with pytest.raises(DataError, match="PNG, JPEG, WebP or GIF"):
        load_image(encoded(Image.new("RGB", (4, 4)), "BMP"))


def test_exif_turns_the_picture_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    assert load_image(encoded(Image.new("RGB", (8, 2)), "JPEG", exif=exif)).size == (2, 8)


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI4s", tag, kind, count, value)


@pytest.mark.parametrize(
    "damage",
    [
        entry(0xA005, 7, 2, b""),  # struct.error in Pillow
        entry(0x011A, 7, 3, b"\x08\x01"),  # TypeError
        entry(0x010F, 11, 4, b""),  # AttributeError
    ],
)
def test_damaged_exif_is_refused_in_a_sentence(damage: bytes) -> None:
    upright = entry(0x0112, 3, 1, b"\x06")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + upright + damage + bytes(4)
    picture = encoded(Image.new("RGB", (8, 2)), "JPEG", exif=exif)
    for read in (load_image, check_image):
        with pytest.raises(DataError, match="image is truncated, damaged or not a PNG, JPEG, WebP or GIF"):
            read(picture)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_check_finds_what_decoding_would_find(format_: str) -> None:
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), format_)
    check_image(whole)
    for read in (load_image, check_image):
        with pytest.raises(DataError, match="truncated"):
            read(whole[: len(whole) * 3 // 4])


@pytest.mark.parametrize("cut", [0, 1, 8, 20, 60, -30])
def test_a_truncated_picture_is_refused(cut: int) -> None:
    noise = Image.effect_noise((32, 32), 50)
    with pytest.raises(DataError, match="truncated"):
        load_image(encoded(noise)[:cut])


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a huge size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(7000, 7000), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="pixels"):
        load_image(bomb(*size))


def test_a_limit_may_be_lower() -> None:
    with pytest.raises(DataError, match="at most 100"):
        load_image(encoded(Image.new("RGB", (11, 10))), max_pixels=100)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cat\.png does not exist"):
        load_image(tmp_path / "cat.png")


def test_a_folder_is_not_a_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        load_image(tmp_path)
