"""Pictures that are made to do harm: small files that ask for much memory or time, and other files in disguise."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping

from PIL import Image

Make = Callable[[], bytes]
MEGABYTE = 1_000_000


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def small(format_: str) -> bytes:
    return encoded(Image.new("RGB", (4, 4), "red"), format_)


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int = 4, height: int = 4, before: bytes = b"", after: bytes = b"") -> bytes:
    """16 red pixels, whatever size its header claims. before, after: chunks around that of the pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff\0\0" * 4) * 4)
    chunks = (chunk(b"IHDR", header), before, chunk(b"IDAT", pixels), after, chunk(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def text_bomb(kind: bytes, head: bytes) -> bytes:
    """A chunk of text, or of a colour profile, that unpacks to 100 MB."""
    return chunk(kind, head + zlib.compress(bytes(100 * MEGABYTE)))


def after_first_bytes(picture: bytes, count: int, inserted: bytes) -> bytes:
    return picture[:count] + inserted + picture[count:]


def jpeg_of_many_scans() -> bytes:
    """Each goes over 36 megapixels once more, for 59 bytes."""
    picture = encoded(Image.new("L", (6000, 6000)), "JPEG", progressive=True)
    scan = picture[picture.rindex(b"\xff\xda") : -2]
    return after_first_bytes(picture, len(picture) - 2, scan * 1000)


def gif_of_a_frame_larger_than_its_screen() -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x84\x51\0;"


def gif_of_many_frames() -> bytes:
    screen, frame = _gif()
    return screen + frame * 500_000 + b";"


def gif(before: bytes) -> bytes:
    """before: what stands between the screen and the frame."""
    screen, frame = _gif()
    return screen + before + frame + b";"


def _gif() -> tuple[bytes, bytes]:
    """The screen with its palette, and a frame."""
    picture = encoded(Image.new("L", (4, 4)), "GIF")
    start = picture.index(b",\0\0\0\0\4\0\4\0")
    return picture[:start], picture[start:-1]


def webp_of_a_huge_canvas() -> bytes:
    picture = bytearray(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "WEBP"))
    size = picture.index(b"VP8X") + 12
    picture[size : size + 6] = b"\xfe\x3f\0" * 2  # 16383 x 16383
    return bytes(picture)


def webp_of_many_frames() -> bytes:
    frames = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(256)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:] * 4)


def overlapping_exif() -> bytes:
    """Every one of 10,000 tags is the same 100 KB."""
    tags, size = 10_000, 100_000
    start = 8 + 2 + 12 * tags
    entries = b"".join(struct.pack("<HHII", tag, 1, size, start) for tag in range(1, tags + 1))
    return b"II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(size)


REFUSED: Mapping[str, Make] = {
    "a header of 12,000 x 12,000": lambda: png(12_000, 12_000),
    "a header of 60,000 x 60,000": lambda: png(60_000, 60_000),
    "a header beyond 31 bits": lambda: png(2**32 - 1, 2**32 - 1),
    "a header of no height": lambda: png(4, 0),
    "zTXt": lambda: png(before=text_bomb(b"zTXt", b"k\0\0")),
    "iTXt": lambda: png(before=text_bomb(b"iTXt", b"k\0\1\0\0\0")),
    "iCCP": lambda: png(before=text_bomb(b"iCCP", b"k\0\0")),
    "zTXt behind the pixels": lambda: png(after=text_bomb(b"zTXt", b"k\0\0")),
    "a hundred texts of 1 MB": lambda: png(before=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20))) * 100),
    "chunks": lambda: png(before=chunk(b"teSt") * 100_000),
    "chunks of no pixels": lambda: png(after=chunk(b"IDAT") * 100_000),
    "scans": jpeg_of_many_scans,
    "segments": lambda: after_first_bytes(small("JPEG"), 2, b"\xff\xe5\0\2" * 100_000),
    "segments behind an end": lambda: after_first_bytes(small("JPEG"), 2, b"\xff\xd9" + b"\xff\xe5\0\2" * 100_000),
    "bytes between segments": lambda: after_first_bytes(small("JPEG"), 2, b"\xff\xe5\0\2" + b"\1" * MEGABYTE),
    "a frame beyond the screen": gif_of_a_frame_larger_than_its_screen,
    "blocks of a comment": lambda: gif(b"!\xfe" + b"\1a" * 100_000 + b"\0"),
    "bytes between blocks": lambda: gif(bytes(100_000)),
    "a canvas of 16,383 x 16,383": webp_of_a_huge_canvas,
    **{f"half a {format_}": lambda form=format_: cut_in_half(form) for format_ in ("PNG", "JPEG", "WEBP", "GIF")},
    **{f"a head of {format_}": lambda form=format_: small(form)[:12] for format_ in ("PNG", "JPEG", "WEBP", "GIF")},
    "BMP": lambda: small("BMP"),
    "TIFF": lambda: small("TIFF"),
    "ICO": lambda: encoded(Image.new("RGB", (16, 16)), "ICO"),
    "JPEG 2000": lambda: small("JPEG2000"),
    "PDF": lambda: small("PDF"),
    "EPS": lambda: small("EPS"),
    "PSD": lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(100),
    "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "an SVG behind a PNG's signature": lambda: b"\x89PNG\r\n\x1a\n<svg></svg>",
    "XBM": lambda: b"#define a_width 4\n#define a_height 4\nstatic char a_bits[] = {\n0x00};",
    "a zip": lambda: b"PK\3\4" + bytes(100),
}
"""What is refused, by what is wrong with it."""

READ: Mapping[str, Make] = {
    "half a million frames of GIF": gif_of_many_frames,
    "a thousand frames of WebP": webp_of_many_frames,
    "a long comment": lambda: gif(b"!\xfe" + (b"\xff" + b"a" * 255) * 10_000 + b"\0"),
    "tags that overlap in PNG": lambda: png(before=chunk(b"eXIf", overlapping_exif())),
    "tags that overlap in WebP": lambda: encoded(Image.new("RGB", (4, 4), "red"), "WEBP", exif=overlapping_exif()),
    "tags that overlap in text": lambda: png(
        before=chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n\n\n" + overlapping_exif().hex().encode())
        )
    ),
    "a megabyte behind the end": lambda: small("JPEG") + b"\xff\xda" * (MEGABYTE // 2),
}
"""What is odd and harmless: 4 x 4 pixels of which the first frame is read."""


def cut_in_half(format_: str) -> bytes:
    picture = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), format_)
    return picture[: len(picture) // 2]
