"""Questions about the demo's pictures, each with one right answer and up to three wrong choices.

A question is asked only where the picture leaves no doubt: "the circle" means that there is exactly one, and an object
near the middle is not asked for its corner.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal, get_args

import numpy as np

from .scenes import COLORS, SHAPES, SIZE, Digit, Picture, SceneObject, pick

Kind = Literal["color", "shape", "digit", "count", "position", "relation", "existence"]
KINDS: tuple[Kind, ...] = get_args(Kind)

DIRECTIONS = ("left", "right", "above", "below")
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
DIGITS = tuple("0123456789")
WRONG_CHOICES = 3

LIST_REQUEST = "List the objects and their places."

CORNER_MARGIN = 4
"""Pixels that an object's centre keeps from both middle lines when its corner is asked for."""

RELATION_MARGIN = 12
"""Pixels that two centres lie apart in the direction that is the answer; across it, at most half of that distance."""

EVEN_WEIGHTS: Mapping[Kind, float] = dict.fromkeys(KINDS, 1.0)

_COLOR_OF_DIGIT = 0.2
_COUNT_WHAT_IS_THERE = 0.75

Scene = tuple[SceneObject, ...]


@dataclass(frozen=True)
class Question:
    """choices holds the answer too, shuffled."""

    kind: Kind
    text: str
    answer: str
    choices: tuple[str, ...]


def ask(
    picture: Picture, rng: np.random.Generator, count: int, weights: Mapping[Kind, float] = EVEN_WEIGHTS
) -> list[Question]:
    """`count` questions, their kinds drawn with `weights` as far as the picture allows each kind."""
    if isinstance(picture.content, Digit):
        return [_ask_digit(picture.content, rng) for _ in range(count)]
    shares = np.array([weights[kind] for kind in _ASK_SCENE])
    askers = list(_ASK_SCENE.values())
    questions: list[Question] = []
    while len(questions) < count:
        question = askers[rng.choice(len(askers), p=shares / shares.sum())](picture.content, rng)
        if question is not None:
            questions.append(question)
    return questions


def list_objects(picture: Picture) -> str:
    """The answer to LIST_REQUEST: everything in the picture and its corner, from top to bottom. For training only.

    Here an object near the middle has a corner too.
    """
    if isinstance(picture.content, Digit):
        return f"{picture.content.color} {picture.content.value}"
    ordered = sorted(picture.content, key=lambda item: item.y)
    return ", ".join(f"{item.name} {_corner(item)}" for item in ordered)


def example_texts() -> Iterator[str]:
    """Texts that hold every word of every question and answer; a tokenizer is trained on them."""
    for color, shape in product(COLORS, SHAPES):
        yield f"What color is the {shape}? {color}"
        yield f"What shape is the {color} object? {shape}"
        yield f"How many {color} objects are there? How many {PLURALS[shape]} are there?"
        yield f"Where is the {color} {shape} relative to the {color} {shape}?"
        yield f"Is there {_with_article(color)} {shape}? {color} {shape}, {color} {shape}"
    yield from ("How many objects are there?", "Which digit is this?", "What color is the digit?")
    yield LIST_REQUEST
    yield from (f"is {answer}" for answer in (*DIRECTIONS, *CORNERS, *DIGITS, "yes", "no"))


def _ask_digit(digit: Digit, rng: np.random.Generator) -> Question:
    if rng.random() < _COLOR_OF_DIGIT:
        return _question("color", "What color is the digit?", digit.color, list(COLORS), rng)
    return _question("digit", "Which digit is this?", str(digit.value), DIGITS, rng)


def _ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    item = _pick_unique(scene, rng, lambda o: o.shape)
    if item is None:
        return None
    return _question("color", f"What color is the {item.shape}?", item.color, list(COLORS), rng)


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    item = _pick_unique(scene, rng, lambda o: o.color)
    if item is None:
        return None
    return _question("shape", f"What shape is the {item.color} object?", item.shape, SHAPES, rng)


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question | None:
    subject = rng.integers(3)
    if subject == 0:
        return _question("count", "How many objects are there?", str(len(scene)), DIGITS[1:5], rng)
    if subject == 1:
        color = _pick_countable(rng, [item.color for item in scene], list(COLORS))
        text, counted = f"How many {color} objects are there?", [item.color == color for item in scene]
    else:
        shape = _pick_countable(rng, [item.shape for item in scene], SHAPES)
        text, counted = f"How many {PLURALS[shape]} are there?", [item.shape == shape for item in scene]
    return _question("count", text, str(sum(counted)), DIGITS[:5], rng)


def _ask_position(scene: Scene, rng: np.random.Generator) -> Question | None:
    middle = SIZE / 2
    clear = [
        item
        for item in _unique(scene, lambda o: o.name)
        if min(abs(item.x - middle), abs(item.y - middle)) >= CORNER_MARGIN
    ]
    if not clear:
        return None
    item = pick(rng, clear)
    return _question("position", f"Where is the {item.name}?", _corner(item), CORNERS, rng)


def _corner(item: SceneObject) -> str:
    return f"{'top' if item.y < SIZE / 2 else 'bottom'}-{'left' if item.x < SIZE / 2 else 'right'}"


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    related = [
        (first, second, direction)
        for first, second in permutations(_unique(scene, lambda o: o.name), 2)
        if (direction := _direction(first, second)) is not None
    ]
    if not related:
        return None
    first, second, direction = pick(rng, related)
    text = f"Where is the {first.name} relative to the {second.name}?"
    return _question("relation", text, direction, DIRECTIONS, rng)


def _direction(first: SceneObject, second: SceneObject) -> str | None:
    """Where `first` lies as seen from `second`; None where two directions would be half right."""
    dx, dy = first.x - second.x, first.y - second.y
    along, across = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
    if along < RELATION_MARGIN or along < 2 * across:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _ask_existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Half of the time about what is there, else about an object with one property changed, which is harder to deny."""
    present = [item.name for item in scene]
    if rng.random() < 0.5:
        return _question("existence", f"Is there {_with_article(pick(rng, present))}?", "yes", ("yes", "no"), rng)
    item = pick(rng, scene)
    near_misses = [f"{color} {item.shape}" for color in COLORS] + [f"{item.color} {shape}" for shape in SHAPES]
    absent = [name for name in near_misses if name not in present]
    return _question("existence", f"Is there {_with_article(pick(rng, absent))}?", "no", ("yes", "no"), rng)


_ASK_SCENE: Mapping[Kind, Callable[[Scene, np.random.Generator], Question | None]] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "position": _ask_position,
    "relation": _ask_relation,
    "existence": _ask_existence,
}
"""How to ask each kind of question about a scene; None where the drawn objects would leave a doubt."""


def _question(kind: Kind, text: str, answer: str, options: Sequence[str], rng: np.random.Generator) -> Question:
    wrong = [option for option in options if option != answer]
    choices = [answer, *(wrong[i] for i in rng.permutation(len(wrong))[:WRONG_CHOICES])]
    return Question(kind, text, answer, tuple(choices[i] for i in rng.permutation(len(choices))))


def _unique(scene: Scene, key: Callable[[SceneObject], str]) -> list[SceneObject]:
    keys = [key(item) for item in scene]
    return [item for item in scene if keys.count(key(item)) == 1]


def _pick_unique(scene: Scene, rng: np.random.Generator, key: Callable[[SceneObject], str]) -> SceneObject | None:
    unique = _unique(scene, key)
    return pick(rng, unique) if unique else None


def _pick_countable(rng: np.random.Generator, present: Sequence[str], options: Sequence[str]) -> str:
    return pick(rng, present if rng.random() < _COUNT_WHAT_IS_THERE else options)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
