"""Small files of samples, written by tests."""

import json
from pathlib import Path
from typing import Any

from PIL import Image


def picture(file: Path, colour: str = "red") -> bytes:
    Image.new("RGB", (4, 4), colour).save(file)
    return file.read_bytes()


def lines(file: Path, *entries: Any) -> Path:
    """One line per entry; a text stands as it is."""
    file.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries))
    return file


def question(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "question": f"What is {number}?", "answer": str(number), **more}
