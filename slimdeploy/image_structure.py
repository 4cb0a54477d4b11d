"""Of how many pieces an encoded picture is made, seen before a decoder sees it.

Limits of bytes and pixels alone are not enough, because a decoder does something for every piece: a JPEG of 10 MB may
hold 170,000 scans, each of which goes over all pixels again, which takes hours; 10 MB of nothing but chunks or segments
take Pillow 3 to 11 s. Knows no pixels, and no more of a format than where a piece ends.
"""

import re

# Several times what encoders make: 10 scans of a progressive JPEG, a PNG chunk for each 8 KB.
_SCANS = 50
_PIECES = 20_000
_JPEG_STRAY_BYTES = 65_536
_END_OF_JPEG, _START_OF_SCAN, _WITHOUT_LENGTH = 0xD9, 0xDA, frozenset({0x01, 0xD8, 0xD9})
# Leaves out what stands inside of a scan: escaped bytes and restarts; and bytes that fill.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def excess_of(data: bytes) -> str | None:
    """What the picture has more of than is read, as `50 scans`; None where all is well or the format is another."""
    if data.startswith(b"\x89PNG"):
        return _excess_of_png(data)
    if data.startswith(b"\xff\xd8"):
        return _excess_of_jpeg(data)
    if data.startswith(b"GIF8"):
        return _excess_of_gif(data)
    return None


def _excess_of_png(data: bytes) -> str | None:
    position = 8
    for _ in range(_PIECES):
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        if position >= len(data):
            return None
    return f"{_PIECES} chunks"


def _excess_of_jpeg(data: bytes) -> str | None:
    """Steps from marker to marker as libjpeg does; only the first picture of a file counts."""
    position, scans, stray = 2, 0, 0
    for _ in range(_PIECES):
        marker = _MARKER.search(data, position)
        if marker is None:
            return None
        if scans == 0:
            stray += marker.start() - position
            if stray > _JPEG_STRAY_BYTES:
                return f"{_JPEG_STRAY_BYTES} bytes between its segments"
        position, code = marker.end(), marker[0][1]
        if code == _END_OF_JPEG and scans:  # Pillow looks beyond one that comes too early
            return None
        scans += code == _START_OF_SCAN
        if scans > _SCANS:
            return f"{_SCANS} scans"
        if code not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")
    return f"{_PIECES} segments"


def _excess_of_gif(data: bytes) -> str | None:
    """Steps over what stands before the first frame, the only one that is read."""
    position = 13 + (6 << (data[10] & 7) if len(data) > 10 and data[10] & 0x80 else 0)
    in_extension = False
    for _ in range(_PIECES):
        if position >= len(data):
            return None
        byte = data[position]
        if in_extension:
            in_extension = byte != 0
            position += 1 + byte
        elif byte == ord("!"):
            in_extension = True
            position += 2
        elif byte in b",;":
            return None
        else:
            position += 1
    return f"{_PIECES} blocks"
