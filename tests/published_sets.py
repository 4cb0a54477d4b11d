"""Hand-made folders of ScienceQA and VizWiz, with the files, keys and places that the published ones have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SUBJECTS = ("natural science", "language science", "social science")


def write_science_qa(folder: Path, train: int, test: int) -> Path:
    """Every third problem has no picture, every second a hint. The picture of problem N is in grey value N."""
    problems: dict[str, Any] = {}
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number in range(1, train + test + 1):
        part = "train" if number <= train else "test"
        parts[part].append(str(number))
        problems[str(number)] = {
            "question": f"Which is {number}?",
            "choices": ["a leaf", "a stone", "B"][: 2 + number % 2],
            "answer": number % 2,
            "hint": f"Figure: {number}." if number % 2 else "",
            "image": "image.png" if number % 3 else None,
            "task": "closed choice",
            "grade": "grade2",
            "subject": SUBJECTS[number % 3],
            "topic": "geography",
            "category": "Maps",
            "skill": "Read a map",
            "lecture": "Maps show places.",
            "solution": "Look at the map.",
            "split": part,
        }
        if number % 3:
            _write_picture(folder / "images" / part / str(number) / "image.png", number)
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", parts | {"trainval": parts["train"], "minitest": parts["test"][:1]})
    return folder


def write_vizwiz(folder: Path, train: int, val: int) -> Path:
    """Annotations beside one folder of pictures per part; the test part has neither answers nor pictures here."""
    for part, count in (("train", train), ("val", val)):
        entries = [_photo(f"VizWiz_{part}_{number:08}.jpg", number) for number in range(count)]
        for number, entry in enumerate(entries):
            _write_picture(folder / part / entry["image"], number + 100 * (part == "val"))
        write_json(folder / "Annotations" / f"{part}.json", entries)
    write_json(folder / "Annotations" / "test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What?"}])
    return folder


def _photo(name: str, number: int) -> dict[str, Any]:
    said = ["unsuitable", *["soup"] * 6, *["tomato soup"] * 3] if number % 2 else ["unanswerable"] * 10
    return {
        "image": name,
        "question": f"What is in can {number}?",
        "answers": [{"answer_confidence": ("yes", "maybe", "no")[i % 3], "answer": a} for i, a in enumerate(said)],
        "answer_type": "other" if number % 2 else "unanswerable",
        "answerable": number % 2,
    }


def _write_picture(file: Path, shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((24, 24, 3), shade, dtype=np.uint8)).save(file)


def write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
