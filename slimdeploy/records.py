"""The file formats that samples come in, entry by entry. Knows nothing of splits.

A format is recognised by what a file holds, never by its name: a JSON array or JSON lines, and in each entry the key
`conversations`, `messages` or `question`.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from .errors import DataError
from .metrics import chosen
from .samples import AnswerMetric, ImageSource, Sample

_IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class Located:
    """A sample and where it stands, for error messages: "FILE:LINE", or "FILE, entry N" in an array."""

    sample: Sample
    where: str


def read_records(file: Path, images: Path) -> Iterator[Located]:
    """Every sample of a file in order; relative picture paths start from the folder `images`.

    Raises DataError that names the line for what is no JSON, no sample, or has the id of an earlier one.
    """
    samples = located_samples(read_entries(file), images)
    first = next(samples, None)
    if first is None:
        raise DataError(f"{file} holds no sample")
    yield first
    yield from samples


def located_samples(entries: Iterable[tuple[str, Any]], images: Path) -> Iterator[Located]:
    """Every entry as a sample. entries: where each stands, and what it holds."""
    places: dict[str, str] = {}
    for where, entry in entries:
        try:
            sample = _sample(entry, where, images)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if sample.id in places:
            raise DataError(f"{where}: the id '{sample.id}' stands at {places[sample.id]} already; ids must differ")
        places[sample.id] = where
        yield Located(sample, where)


def read_entries(file: Path) -> Iterator[tuple[str, Any]]:
    """Every JSON value of an array or of JSON lines, and where it stands; DataError for what is no JSON."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} is not valid JSON: {error}") from None
        yield from ((f"{file}, entry {number}", entry) for number, entry in enumerate(entries, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{file}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}:{number} is not JSON ({error}); each line holds one sample") from None


def _sample(entry: Any, where: str, images: Path) -> Sample:
    match entry:
        case {"conversations": list(turns)}:
            sample = _llava(entry, turns, where, images)
        case {"messages": list(messages)}:
            sample = _openai(entry, messages, where, images)
        case {"question": str(text)} if question := _without_mark(text):
            sample = _plain(entry, question, where, images)
        case _:
            raise DataError("is no sample: it needs a 'question', 'conversations' (LLaVA) or 'messages' (OpenAI)")
    sample = replace(sample, choices=_texts(entry, "choices"), kind=_kind(entry), metric=_metric(entry))
    for text in (sample.id, sample.question, *sample.answers, *sample.choices, sample.kind):
        _require_characters(text)
    _check_choices(sample)
    return sample


def _without_mark(text: str) -> str:
    """The text without the place that data sets mark for the picture: chat templates put pictures first."""
    return text.replace(_IMAGE_MARK, "").strip()


def _require_characters(text: str) -> None:
    """JSON can spell half of a character's two UTF-16 units; no file, path or tokenizer takes such a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{text!a} holds half of a surrogate pair, which is no character; correct it") from None


def _plain(entry: dict[str, Any], question: str, where: str, images: Path) -> Sample:
    return Sample(
        id=_id(entry, where),
        question=question,
        images=_image_paths(entry, images),
        answers=_answers(entry),
        sounds=tuple(_media(name, images, "sound", "audio") for name in _texts(entry, "audio")),
    )


def _llava(entry: dict[str, Any], turns: list[Any], where: str, images: Path) -> Sample:
    said = {"human": "", "gpt": ""}
    for turn in turns:
        match turn:
            case {"from": "human" | "gpt" as speaker, "value": str(text)}:
                if said["gpt"] or (speaker == "human" and said["human"]):
                    break
                said[speaker] = _without_mark(text)
            case {"from": "system", "value": str()}:
                continue
            case _:
                raise DataError("each of 'conversations' needs 'from' (human or gpt) and 'value'")
    question = said["human"]
    if not question:
        raise DataError("'conversations' holds no question from 'human'")
    answers = (said["gpt"],) if said["gpt"] else ()
    pictures = _image_paths(entry, images)
    return Sample(_id(entry, where), question, pictures, answers)


def _openai(entry: dict[str, Any], messages: list[Any], where: str, images: Path) -> Sample:
    """The first user message and the assistant's answer; a system message goes ahead of the question."""
    texts: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    pictures: list[ImageSource] = []
    for message in messages:
        match message:
            case {"role": "system" | "user" | "assistant" as role, "content": content}:
                if texts["assistant"] or (role == "user" and texts["user"]):
                    break
                _read_parts(content, images, texts[role], pictures)
            case _:
                raise DataError("each of 'messages' needs 'role' (system, user or assistant) and 'content'")
    if not texts["user"]:
        raise DataError("'messages' holds no question from 'user'")
    question = "\n".join(texts["system"] + texts["user"])
    answer = "\n".join(texts["assistant"])
    answers = (answer,) if answer else ()
    return Sample(_id(entry, where), question, tuple(pictures), answers)


def _read_parts(content: Any, images: Path, texts: list[str], pictures: list[ImageSource]) -> None:
    text_only = [{"type": "text", "text": "" if content is None else content}]
    for part in content if isinstance(content, list) else text_only:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.extend([said] if (said := _without_mark(text)) else [])
            case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
                pictures.append(_image(url, images))
            case _:
                raise DataError("each part of 'content' is a text or an image_url")


def _id(entry: dict[str, Any], where: str) -> str:
    """The entry's own id, or its place in the file."""
    name = entry.get("id", where)
    if not isinstance(name, str | int) or name == "":
        raise DataError(f"'id' is {name!r}, not a text or a whole number")
    return str(name)


def _kind(entry: dict[str, Any]) -> str:
    kind = entry.get("kind", entry.get("type", ""))
    if not isinstance(kind, str):
        raise DataError(f"'kind' is {kind!r}, not a text")
    return kind


def _metric(entry: dict[str, Any]) -> AnswerMetric:
    metric = entry.get("metric", "exact_match")
    if metric not in get_args(AnswerMetric):
        raise DataError(f"'metric' is {metric!r}, not one of {', '.join(get_args(AnswerMetric))}")
    return cast(AnswerMetric, metric)


def _check_choices(sample: Sample) -> None:
    if sample.metric == "letter" and not sample.choices:
        raise DataError("the metric 'letter' needs 'choices'")
    for answer in sample.answers if sample.choices else ():
        if chosen(answer, sample.choices) is None:
            raise DataError(f"the answer '{answer}' is not among the choices {', '.join(sample.choices)}")


def _texts(entry: dict[str, Any], key: str) -> tuple[str, ...]:
    """A text or a list of texts; numbers are taken as their text, as in counts."""
    value = entry.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(text, bool) or not isinstance(text, str | int | float) for text in values):
        raise DataError(f"'{key}' is {value!r}, not a text or a list of texts")
    return tuple(str(text) for text in values)


def _answers(entry: dict[str, Any]) -> tuple[str, ...]:
    """A blank answer is none: data sets write one where the answer is withheld."""
    answers = _texts(entry, "answers") or _texts(entry, "answer")
    return tuple(answer for answer in answers if answer.strip())


def _image_paths(entry: dict[str, Any], images: Path) -> tuple[ImageSource, ...]:
    return tuple(_image(name, images) for name in _texts(entry, "images") or _texts(entry, "image"))


def _image(name: str, images: Path) -> ImageSource:
    return _media(name, images, "picture", "image")


def _media(name: str, images: Path, what: str, key: str) -> Path | bytes:
    """A data: URL's bytes, or a path that starts from the folder `images`. what, key: how errors call it."""
    if name.startswith("data:"):
        header, _, encoded = name.partition(",")
        try:
            if not header.endswith(";base64"):
                raise ValueError
            return base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise DataError(f"a data: URL is not of the form data:{key}/...;base64,...") from None
    if "://" in name:
        raise DataError(f"the {what} '{name}' is a web address; nothing is downloaded: save it beside the file")
    if not name.strip():
        raise DataError(f"a {what}'s path is empty; leave '{key}' out where there is no {what}")
    _require_characters(name)
    return images / name
