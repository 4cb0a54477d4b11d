"""ScienceQA and VizWiz, from the folders that people unpack. Knows their files and prompts; hands out no splits.

Each entry is told in the plain format and read by `records`. The words around the questions are our own:
- ScienceQA (Lu et al. 2022) is a multiple choice; the answer is a letter, and only the letter counts.
- VizWiz (Gurari et al. 2018) has ten human answers per question; they count as in VQA. Its test part has no answers,
  so the validation part is what it is judged on.
"""

import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError
from .records import Located, located_samples, read_entries

_PROBLEMS = "problems.json"
_PARTS = "pid_splits.json"
_WHERE_FROM = "problems.json and pid_splits.json stand together in data/scienceqa of lupantech/ScienceQA"
_ASK_FOR_LETTER = "Answer with the letter of the right choice."
_ASK_FOR_PHRASE = "Answer with one word or a short phrase, or with 'unanswerable' if the picture does not show it."


@dataclass(frozen=True)
class Part:
    """A part of a published data set. source: what messages call it."""

    source: str
    samples: Iterator[Located]


@dataclass(frozen=True)
class Published:
    """What a data set is learned from, and what it is judged on."""

    train: Part
    test: Part


def read_published(folder: Path, images: Path | None) -> Published | None:
    """The data set that a folder holds, or None where it holds neither of the two.

    images: the folder with the parts' pictures, where it is not the usual one.
    Raises DataError for a missing file, here or when samples are taken; it then names the entry.
    """
    if (folder / _PROBLEMS).is_file() or (folder / _PARTS).is_file():
        usual = folder / "images" if (folder / "images").is_dir() else folder
        return _science_qa(folder, images or usual)
    annotations = next(filter(_is_vizwiz, (folder, folder / "Annotations", folder / "annotations")), None)
    return None if annotations is None else _vizwiz(annotations, images or folder)


def _science_qa(folder: Path, images: Path) -> Published:
    problems, parts = (_object(folder / name) for name in (_PROBLEMS, _PARTS))

    def part(name: str) -> Part:
        file = folder / _PARTS
        numbers = parts.get(name)
        if not isinstance(numbers, list):
            raise DataError(f"{file} has no list '{name}', but {sorted(parts)}; {_WHERE_FROM}")
        told = _told(_listed(problems, numbers, folder, name), lambda problem: _problem(problem, name))
        return Part(f"{file}, '{name}',", located_samples(told, images))

    return Published(part("train"), part("test"))


def _listed(problems: dict[str, Any], numbers: list[Any], folder: Path, part: str) -> Iterator[tuple[str, Any]]:
    """The problems of a part, each with its number."""
    for number in map(str, numbers):
        if number not in problems:
            raise DataError(
                f"{folder / _PARTS} lists problem '{number}' in '{part}', but {_PROBLEMS} has none of that number; "
                f"the files are of different versions: {_WHERE_FROM}"
            )
        yield f"{folder / _PROBLEMS}, problem '{number}'", (number, problems[number])


def _problem(numbered: tuple[str, Any], part: str) -> dict[str, Any]:
    number, problem = numbered
    match problem:
        case {"question": str(question), "choices": list(choices), "answer": int(answer)}:
            letters = string.ascii_uppercase[: len(choices)]
            hint, picture = problem.get("hint") or "", problem.get("image")
        case _:
            raise DataError("is no problem of ScienceQA: it needs a 'question', a list of 'choices', and an 'answer'")
    if not all(isinstance(text, str) for text in (hint, picture or "", *choices)):
        raise DataError(f"'hint', 'image' and 'choices' are texts, not {hint!r}, {picture!r} and {choices!r}")
    if answer not in range(len(letters)):
        raise DataError(f"'answer' is {answer}, but the {len(letters)} choices are counted from 0; correct it")
    options = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=False)]
    told = {
        "id": number,
        "question": "\n".join(filter(None, [hint, question, *options, _ASK_FOR_LETTER])),
        "choices": list(letters),
        "answer": letters[answer],
        "kind": problem.get("subject", ""),
        "metric": "letter",
    }
    return told | ({"image": f"{part}/{number}/{picture}"} if picture else {})


def _is_vizwiz(folder: Path) -> bool:
    """Whether the annotations are there, with answers as only VizWiz writes them."""
    if not all((folder / f"{part}.json").is_file() for part in ("train", "val")):
        return False
    match next(read_entries(folder / "val.json"), None):
        case (_, {"answers": [{"answer": _}, *_]}):
            return True
        case _:
            return False


def _vizwiz(annotations: Path, images: Path) -> Published:
    def part(name: str) -> Part:
        file = annotations / f"{name}.json"
        pictures = images / name if (images / name).is_dir() else images
        return Part(str(file), located_samples(_told(read_entries(file), _photo), pictures))

    return Published(part("train"), part("val"))


def _photo(entry: Any) -> dict[str, Any]:
    match entry:
        case {"image": str(image), "question": str(question), "answers": list(given)}:
            answers = [answer.get("answer") if isinstance(answer, dict) else answer for answer in given]
        case _:
            raise DataError("is no entry of VizWiz: it needs an 'image', a 'question' and a list of 'answers'")
    # Training takes the first answer: let that be what most people said.
    return {
        "id": image,
        "image": image,
        "question": f"{question}\n{_ASK_FOR_PHRASE}",
        "answers": sorted(answers, key=answers.count, reverse=True),
        "kind": entry.get("answer_type", ""),
        "metric": "vqa",
    }


def _told(entries: Iterator[tuple[str, Any]], plain: Callable[[Any], Any]) -> Iterator[tuple[str, Any]]:
    """Every entry in the plain format."""
    for where, entry in entries:
        try:
            yield where, plain(entry)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None


def _object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(f"{file} is missing; {_WHERE_FROM}")
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON ({error}); {_WHERE_FROM}") from None
    if not isinstance(value, dict):
        raise DataError(f"{file} holds no JSON object; {_WHERE_FROM}")
    return value
