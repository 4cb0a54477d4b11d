"""What clients of the soak ask for: all that the server honours, and much that it refuses."""

import base64
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

Api = Literal["chat", "completion", "response"]
PATHS: dict[Api, str] = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "response": "/v1/responses"}
MAX_BODY_MB = 0.5
_BUSY = 429
_WORDS = ("what", "is", "there", "in", "this", "picture", "and", "how", "many", "of", "them", "é", "漢", "\n")
_FORMS = ("png", "jpeg", "webp", "gif")
_OLD_PICTURES = 6
_SCHEMA = {"type": "object", "properties": {"red": {"type": "integer"}}, "required": ["red"]}
_SHAPES: tuple[dict[str, Any], ...] = ({"choice": ["yes", "no"]}, {"regex": "[a-f]{3,9}"}, {"json": _SCHEMA})


@dataclass(frozen=True)
class Ask:
    """A request. count: answers that it asks for. statuses: that the server may answer with."""

    api: Api
    body: bytes
    stream: bool = False
    count: int = 1
    statuses: frozenset[int] = frozenset({200, _BUSY})

    @property
    def path(self) -> str:
        return PATHS[self.api]


def question(rng: random.Random) -> Ask:
    """That the server can answer."""
    api: Api = rng.choice(("chat", "chat", "completion", "response"))
    count = 1 if api == "response" else rng.choice((1, 1, 1, 2, 3))
    stream = rng.random() < 0.5
    tokens = rng.choice((1, 4, 16, 40, 100))
    fields: dict[str, Any] = {"model": "tiny", "stream": stream} | _sampling(rng)
    if count > 1:
        fields["n"] = count
    match api:
        case "chat":
            fields |= {"messages": conversation(rng), "max_completion_tokens": tokens}
            if rng.random() < 0.3:
                fields |= {"logprobs": True, "top_logprobs": rng.randint(0, 20)}
            if stream and rng.random() < 0.5:
                fields["stream_options"] = {"include_usage": True}
        case "completion":
            prompt: Any = text(rng) if rng.random() < 0.7 else [rng.randint(5, 250) for _ in range(rng.randint(1, 90))]
            fields |= {"prompt": prompt, "max_tokens": tokens}
            if rng.random() < 0.3:
                fields["logprobs"] = rng.randint(0, 20)
        case "response":
            shape = fields.pop("structured_outputs", None)
            fields |= {"text": {"format": {"type": "json_schema", "name": "red", "schema": _SCHEMA}}} if shape else {}
            fields |= {"input": text(rng), "max_output_tokens": tokens, "instructions": rng.choice((None, "Be brief."))}
            if fields["instructions"]:
                fields["input"] = fields["input"][:60]
    return Ask(api, json.dumps(fields).encode(), stream, count)


def _sampling(rng: random.Random) -> dict[str, Any]:
    choices: list[Callable[[], dict[str, Any]]] = [
        lambda: {"temperature": rng.choice((0, 0.7, 1.5))},
        lambda: {"top_p": 0.9, "top_k": 40},
        lambda: {"seed": rng.randint(0, 9)},
        lambda: {"stop": [rng.choice("abcdefgh"), "é", "never in an answer"]},
        lambda: {"presence_penalty": 0.5, "repetition_penalty": 1.1},
        lambda: {"ignore_eos": True},
        lambda: {"structured_outputs": rng.choice(_SHAPES)},
    ]
    return {name: value for make in choices if rng.random() < 0.3 for name, value in make().items()}


def text(rng: random.Random) -> str:
    """Short, or nearly as long as the model takes."""
    return " ".join(rng.choices(_WORDS, k=rng.choice((2, 5, 12, 30))))[:130]


def conversation(rng: random.Random) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text(rng)}]
    for _ in range(rng.choice((0, 0, 1, 1, 3))):
        parts.insert(rng.randint(0, len(parts)), {"type": "image_url", "image_url": {"url": picture(rng)}})
    earlier = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    return [*(earlier if rng.random() < 0.3 else []), {"role": "user", "content": parts}]


def picture(rng: random.Random) -> str:
    """One that was sent before, or a new one."""
    seed = rng.randrange(_OLD_PICTURES) if rng.random() < 0.5 else rng.getrandbits(32)
    noise = np.random.default_rng(seed)
    height, width = noise.integers(8, 120, 2)
    form = _FORMS[seed % len(_FORMS)]
    stream = io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(stream, form)
    return f"data:image/{form};base64,{base64.b64encode(stream.getvalue()).decode()}"


def nonsense(rng: random.Random) -> Ask:
    """That the server refuses, whatever else it does."""
    good = json.loads(question(rng).body)
    api: Api = "chat" if "messages" in good else "completion" if "prompt" in good else "response"
    body, status = rng.choice(_NONSENSE)(rng, good)
    return Ask(api, body, statuses=frozenset({status, _BUSY}))


def _field(name: str, value: Any, status: int = 400) -> Callable[[random.Random, dict[str, Any]], tuple[bytes, int]]:
    return lambda _, good: (json.dumps(good | {name: value}).encode(), status)


def _cut(rng: random.Random, good: dict[str, Any]) -> tuple[bytes, int]:
    whole = json.dumps(good).encode()
    return whole[: rng.randrange(len(whole) - 1)], 400


def _noise(rng: random.Random, good: dict[str, Any]) -> tuple[bytes, int]:
    return rng.randbytes(rng.randint(1, 3000)), 400


def _deep(rng: random.Random, good: dict[str, Any]) -> tuple[bytes, int]:
    return b'{"messages":' * rng.choice((300, 20_000)), 400


def _large(rng: random.Random, good: dict[str, Any]) -> tuple[bytes, int]:
    """Beyond the limit, with a picture that is not to blame."""
    size = int(rng.choice((1.1, 3)) * MAX_BODY_MB * 1e6)
    return json.dumps(good | {"user": "x" * size}).encode(), 413


def _too_long(rng: random.Random, good: dict[str, Any]) -> tuple[bytes, int]:
    name = next(name for name in ("messages", "prompt", "input") if name in good)
    words = "x" * rng.choice((300, 5000, 200_000))
    return json.dumps(
        good | {name: [{"role": "user", "content": words}] if name == "messages" else words}
    ).encode(), 400


def _no_picture(rng: random.Random, good: dict[str, Any]) -> tuple[bytes, int]:
    url = picture(rng)
    bad = rng.choice(
        (url[: len(url) // 2], "http://127.0.0.1:9/a.png", "data:image/png;base64,AAAA", "file:///etc/passwd")
    )
    parts = [{"type": "image_url", "image_url": {"url": bad}}]
    return json.dumps(good | {"messages": [{"role": "user", "content": parts}]}).encode(), 400


_NONSENSE = (
    _field("temperature", -1),
    _field("top_p", "high"),
    _field("n", 99),
    _field("stop", ""),
    _field("no_such_field", [1, 2]),
    _field("model", "another", 404),
    _field("logit_bias", {"99999": 1}),
    _field("structured_outputs", {"regex": "(a"}),
    _field("structured_outputs", {"json": {"type": "colour"}}),
    _cut,
    _noise,
    _deep,
    _large,
    _too_long,
    _no_picture,
)
