"""The demo's pictures and questions: repeatable, disjoint between splits, and right."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from slimdeploy.demo import SPLITS, Split, digit_scans, picture_rng, samples
from slimdeploy.demo.questions import CORNER_MARGIN, KINDS, Question, ask, list_objects
from slimdeploy.demo.scenes import SIZE, Digit, Picture, SceneObject, load_digit_scans, make_picture

SCENES = 400
QUESTIONS_EACH = 8


def pictures(count: int) -> list[tuple[Picture, list[Question]]]:
    pairs = []
    for index in range(count):
        rng = picture_rng("validation", index)
        picture = make_picture(rng, digit_scans("validation"))
        pairs.append((picture, ask(picture, rng, QUESTIONS_EACH)))
    return pairs


def test_a_sample_depends_on_split_and_index_only() -> None:
    assert samples("test", 40)[:20] == samples("test", 20)
    assert samples("test", 5) != samples("validation", 5)


def test_splits_share_no_content() -> None:
    hashes = [sample.content_hash() for split in SPLITS for sample in samples(split, 300)]
    assert len(set(hashes)) == len(hashes)


def test_splits_share_no_scanned_digit() -> None:
    scans = [scan.tobytes() for split in SPLITS for scan in digit_scans(split).images]
    assert len(set(scans)) == len(scans) == len(load_digit_scans().labels)


def test_pretraining_sees_no_digit_of_a_split_that_measures() -> None:
    seen = {scan.tobytes() for scan in digit_scans("pretraining").images}
    measuring: tuple[Split, ...] = ("calibration", "search", "validation", "test")
    for split in measuring:
        assert seen.isdisjoint(scan.tobytes() for scan in digit_scans(split).images)


def test_the_shipped_digits_are_those_of_scikit_learn() -> None:
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    shipped = load_digit_scans()
    assert np.array_equal(shipped.images, bundled.images)
    assert np.array_equal(shipped.labels, bundled.target)


def test_every_kind_is_asked_often_in_the_test_split() -> None:
    kinds = Counter(sample.kind for sample in samples("test", 1000))
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 50


def test_a_sample_is_one_png_and_one_answer_among_the_choices() -> None:
    for sample in samples("calibration", 64):
        (source,) = sample.images
        assert isinstance(source, bytes)
        with Image.open(io.BytesIO(source)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (SIZE, SIZE))
        assert sample.answers[0] in sample.choices
        assert len(set(sample.choices)) == len(sample.choices) >= 2


def test_every_answer_is_right_for_the_scene() -> None:
    for picture, questions in pictures(SCENES):
        for question in questions:
            assert question.answer in right_answers(picture, question), (picture.content, question)


def test_no_other_choice_is_right_for_the_scene() -> None:
    for picture, questions in pictures(SCENES):
        for question in questions:
            assert right_answers(picture, question).intersection(question.choices) == {question.answer}


def test_objects_lie_inside_the_picture_and_apart() -> None:
    for picture, _ in pictures(SCENES):
        if isinstance(picture.content, Digit):
            continue
        for number, item in enumerate(picture.content):
            assert item.radius < item.x < SIZE - item.radius
            assert item.radius < item.y < SIZE - item.radius
            for other in picture.content[:number]:
                assert max(abs(item.x - other.x), abs(item.y - other.y)) > item.radius + other.radius


def test_a_list_of_objects_names_each_of_them_and_its_corner_from_top_to_bottom() -> None:
    for picture, _ in pictures(50):
        answer = list_objects(picture)
        if isinstance(picture.content, Digit):
            assert answer == f"{picture.content.color} {picture.content.value}"
            continue
        ordered = sorted(picture.content, key=lambda item: item.y)
        for entry, item in zip(answer.split(", "), ordered, strict=True):
            color, shape, corner = entry.split()
            assert (color, shape) == (item.color, item.shape)
            assert corner in corners_within_margin(item)


def right_answers(picture: Picture, question: Question) -> set[str]:
    """Every word that would be a true answer, found by trying all objects, with none of the code that asks."""
    words = question.text.rstrip("?").split()
    if isinstance(picture.content, Digit):
        return {picture.content.color} if question.kind == "color" else {str(picture.content.value)}
    scene = picture.content
    match question.kind:
        case "color":
            return {o.color for o in scene if o.shape == words[-1]}
        case "shape":
            return {o.shape for o in scene if o.color == words[-2]}
        case "count":
            return {str(sum(is_meant(o, words[2:-2]) for o in scene))}
        case "existence":
            return {"yes" if any([o.color, o.shape] == words[-2:] for o in scene) else "no"}
        case "position":
            (item,) = (o for o in scene if [o.color, o.shape] == words[-2:])
            return corners_within_margin(item)
        case "relation":
            (first,) = (o for o in scene if [o.color, o.shape] == words[3:5])
            (second,) = (o for o in scene if [o.color, o.shape] == words[-2:])
            return directions_within_a_right_angle(first, second)
        case _:
            raise AssertionError(question)


def is_meant(item: SceneObject, words: list[str]) -> bool:
    """words: "objects", "red objects" or "crosses"."""
    if words[-1] == "objects":
        return words[:-1] in ([], [item.color])
    return words[0] in (f"{item.shape}s", f"{item.shape}es")


def corners_within_margin(item: SceneObject) -> set[str]:
    reach = CORNER_MARGIN - 0.01
    return {
        f"{vertical}-{horizontal}"
        for vertical, side_y in (("top", -1), ("bottom", 1))
        for horizontal, side_x in (("left", -1), ("right", 1))
        if side_y * (item.y - SIZE / 2) > -reach and side_x * (item.x - SIZE / 2) > -reach
    }


def directions_within_a_right_angle(first: SceneObject, second: SceneObject) -> set[str]:
    """All directions that are less than 45 degrees from the line between the two."""
    toward = np.array([first.x - second.x, first.y - second.y])
    directions = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
    return {name for name, axis in directions.items() if toward @ axis > np.cos(np.pi / 4) * np.linalg.norm(toward)}
