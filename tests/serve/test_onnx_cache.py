"""With the cache every answer is the one without it, logits too, and what requests have in common is computed once."""

import asyncio
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from threading import get_ident
from typing import Any

import numpy as np
import pytest
from exported import exported, half_pruned
from made_once import MakeOnce
from numpy.typing import NDArray
from PIL import Image

from slimdeploy.artifact import Artifact, open_artifact
from slimdeploy.config import ServeConfig
from slimdeploy.serve.engine import Chunk, EncodedImage, GenerationRequest, Message, Sampling, Usage
from slimdeploy.serve.engines.onnx import OnnxEngine, OnnxGenerator, load_model
from slimdeploy.serve.engines.onnx_model import OnnxModel
from slimdeploy.serve.engines.onnx_sequence import pieces_of
from slimdeploy.serve.engines.prefix_cache import FEWEST_TOKENS, Pieces
from slimdeploy.serve.runtime import load

CONVERSING = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3")
CAUSAL = ("llava", "qwen2_5_vl", "qwen3_vl")
FAMILIES = (*CONVERSING, "paligemma")
BEFORE = "This is what was said before."
"""Long enough to be gone on from."""

pytestmark = pytest.mark.usefixtures("traced_once")
Part = str | EncodedImage | Image.Image


@dataclass(frozen=True)
class Answer:
    """logits: (tokens, vocabulary). new: tokens that the decoder was given at once."""

    text: str
    logits: NDArray[np.float32]
    usage: Usage
    new: int


class Watched:
    """A generator that counts what its graphs do; requests may run in several threads."""

    def __init__(self, artifact: Artifact, cache_mb: float) -> None:
        self.model = load_model(artifact, 1, cache_mb)
        self.generator = OnnxGenerator(self.model)
        self.encoded = 0
        self.prepared = 0
        self._steps: dict[int, list[tuple[int, NDArray[np.float32]]]] = {}
        sessions: Any = self.model.sessions
        decode, encode, prepare = sessions.decode, sessions.encode_picture, self.model._prepared

        def counted_decode(tokens: Any, *rest: Any) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = decode(tokens, *rest)
            self._steps[get_ident()].append((tokens.embeddings.shape[1], logits[0]))
            return logits

        def counted_encode(inputs: Any) -> Any:
            self.encoded += 1
            return encode(inputs)

        def counted_prepare(images: Any) -> Any:
            self.prepared += len(images)
            return prepare(images)

        sessions.decode, sessions.encode_picture = counted_decode, counted_encode
        self.model._prepared = counted_prepare  # type: ignore[method-assign]

    def ask(self, messages: Sequence[Message], tokens: int = 6, ending_after: int | None = None) -> Answer:
        """ending_after: chunks after which the client goes away."""
        steps = self._steps[get_ident()] = []
        chunks, read = self.generator.generate(asked(messages, tokens)), []
        for chunk in chunks:
            read.append(chunk)
            if len(read) == ending_after:
                chunks.close()
        logits = np.stack([logits for _, logits in steps])
        return Answer(text_of(read), logits, read[-1].usage, steps[0][0])


@dataclass(frozen=True)
class Both:
    """The same artifact with the cache and without."""

    cached: Watched
    plain: Watched

    def ask(self, messages: Sequence[Message], tokens: int = 6) -> Answer:
        """The answer of both. What the cache had and what was new are the prompt."""
        answer, expected = self.cached.ask(messages, tokens), self.plain.ask(messages, tokens)
        assert answer.text == expected.text
        np.testing.assert_allclose(answer.logits, expected.logits, rtol=0, atol=1e-5)
        assert answer.usage.prompt_tokens == expected.usage.prompt_tokens == expected.new
        assert answer.usage.cached_tokens + answer.new == expected.new
        assert expected.usage.cached_tokens == 0
        return answer


def picture(seed: int) -> EncodedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return EncodedImage(stream.getvalue(), "messages", 10_000)


def user(*parts: Part) -> Message:
    return Message("user", parts)


def asked(messages: Sequence[Message], tokens: int) -> GenerationRequest:
    return GenerationRequest(tuple(messages), Sampling(tokens, temperature=0.0))


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def first_picture_token(watched: Watched, messages: Sequence[Message]) -> int:
    return watched.model.read(tuple(messages)).ids.index(watched.model.facts.image_token)


@pytest.fixture(scope="module")
def artifacts(artifact: Artifact) -> dict[str, Artifact]:
    return {"llava": artifact}


@pytest.fixture
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def both(family: str, artifacts: dict[str, Artifact], make_once: MakeOnce) -> Both:
    if family not in artifacts:
        folder: Path = exported(half_pruned(family, make_once), "dense-fp32", make_once).folder
        artifacts[family] = open_artifact(folder)
    return Both(Watched(artifacts[family], 1.0), Watched(artifacts[family], 0))


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", names, indirect=True)


@of(*FAMILIES)
def test_the_same_question_twice_is_read_once(both: Both, family: str) -> None:
    question = [user(picture(0), "What is it?")]
    first, second = both.ask(question), both.ask(question)
    assert (both.cached.encoded, both.cached.prepared) == (1, 1)
    assert first.usage.cached_tokens == 0
    assert second.new == (second.usage.prompt_tokens if family == "paligemma" else 1)


@of(*FAMILIES)
def test_another_question_about_a_picture_goes_on_behind_it(both: Both, family: str) -> None:
    question = [user(picture(0), "What is it?")]
    both.ask(question)
    answer = both.ask([user(picture(0), "What is it, and how many?")])
    assert (both.cached.encoded, both.cached.prepared) == (1, 1)
    if family != "paligemma":
        assert answer.usage.cached_tokens >= first_picture_token(both.plain, question) + len("What is it") + 4


@of(*CONVERSING)
def test_another_picture_is_not_taken_for_the_first(both: Both) -> None:
    for seed in (0, 1):
        messages = [user(BEFORE), Message("assistant", ("Yes.",)), user(picture(seed), "What is it?")]
        answer = both.ask(messages)
    assert both.cached.encoded == 2
    assert answer.usage.cached_tokens == first_picture_token(both.plain, messages) >= FEWEST_TOKENS


@of("paligemma")
def test_another_picture_of_a_prompt_in_one_piece(both: Both) -> None:
    for seed in (0, 1, 0):
        assert both.ask([user(picture(seed), "What is it?")]).usage.cached_tokens == 0
    assert both.cached.encoded == 2
    features = both.cached.model.features(both.cached.model.read((user(picture(0), picture(1), "What?"),)))
    assert both.cached.model.cache.nbytes == sum(array.nbytes for each in features for array in each.values()), (
        "no keys and values are kept, of which no part could be used"
    )


@of(*CONVERSING)
def test_a_conversation_that_goes_on_is_read_from_where_it_was(both: Both) -> None:
    messages = [user(picture(0), "What is it?")]
    for question in ("And this?", "Why?"):
        answer = both.ask(messages)
        known = answer.usage.prompt_tokens
        messages = [*messages, Message("assistant", (answer.text,)), user(picture(1), question)]
    answer = both.ask(messages)
    assert both.cached.encoded == 2
    assert answer.usage.cached_tokens >= known - FEWEST_TOKENS, "the templates' ends of turns may differ from answers"


@of(*FAMILIES)
def test_two_pictures_in_both_orders(both: Both) -> None:
    a, b = picture(0), picture(1)
    for pictures in ((a, b), (b, a), (a, a), (a, b)):
        both.ask([user(*pictures, "Which is larger?")])
    assert (both.cached.encoded, both.cached.prepared) == (2, 2)


@of(*CAUSAL)
def test_a_prefix_may_end_within_a_picture(both: Both) -> None:
    messages = [user(BEFORE), Message("assistant", ("Yes.",)), user(picture(0), "What is it?")]
    model = both.cached.model
    question = model.read(tuple(messages))
    middle = first_picture_token(both.plain, messages) + question.pictures[0].tokens // 2
    keep_start(model, messages, middle)
    answer = both.ask(messages)
    assert answer.usage.cached_tokens == middle


@of("gemma3")
def test_a_prefix_may_not_end_within_a_picture_whose_tokens_see_each_other(both: Both) -> None:
    messages = [user(BEFORE), Message("assistant", ("Yes.",)), user(picture(0), "What is it?")]
    model = both.cached.model
    question = model.read(tuple(messages))
    start = first_picture_token(both.plain, messages)
    pieces = pieces_of(model, question)
    assert {*range(start + 1, start + question.pictures[0].tokens)}.isdisjoint(pieces.ends)
    keep_start(model, messages, start)
    assert both.ask(messages).usage.cached_tokens == start


def keep_start(model: OnnxModel, messages: Sequence[Message], tokens: int) -> None:
    """As if a sequence had been no longer than that."""
    question = model.read(tuple(messages))
    prompt = model.prompt(question, model.features(question))
    cache = model.sessions.new_cache(len(question.ids))
    type(model.sessions).decode(model.sessions, prompt.tokens, cache)
    pieces = pieces_of(model, question)
    count = pieces.ends.index(tokens) + 1
    model.cache.keep_sequence(Pieces(pieces.keys[:count], pieces.ends[:count]), 0, lambda: cache.first(tokens))


@of(*CONVERSING)
def test_an_answer_that_was_left_in_the_middle_is_gone_on_from(both: Both) -> None:
    messages = [user(picture(0), "What is it?")]
    both.cached.ask(messages, tokens=50, ending_after=3)
    answer = both.ask(messages, tokens=10)
    assert both.cached.encoded == 1
    assert answer.new == 1


@of(*CONVERSING)
def test_sequences_come_back_after_their_pictures_were_forgotten(both: Both) -> None:
    messages = [user(picture(0), "What is it?")]
    both.ask(messages)
    cache = both.cached.model.cache
    for digest in [*cache._pictures]:
        cache._drop(digest)
    answer = both.ask(messages)
    assert (both.cached.encoded, both.cached.prepared) == (1, 2), "its size must be known, its features need not be"
    assert answer.new == 1


@of(*FAMILIES)
def test_a_small_budget_changes_no_answer(both: Both, artifacts: dict[str, Artifact], family: str) -> None:
    whole = Watched(artifacts[family], 1.0)
    whole.ask([user(picture(0), "What is it?")])
    budget = int(1.5 * whole.model.cache.nbytes)
    small = Both(Watched(artifacts[family], budget / 1e6), both.plain)
    rng = Random(0)
    for _ in range(8):
        small.ask([user(picture(rng.randrange(3)), rng.choice(("What is it?", "Where is it?")))])
        assert 0 < small.cached.model.cache.nbytes <= budget
    assert small.cached.encoded >= 3


@of("llava")
def test_what_is_kept_is_as_large_as_the_sequence_and_not_as_its_capacity(both: Both) -> None:
    messages = [user("What is it, then?")]
    answer = both.cached.ask(messages, tokens=200, ending_after=3)
    per_token = both.cached.model.sessions.new_cache(7).bytes_per_token
    assert both.cached.model.cache.nbytes == (answer.usage.prompt_tokens + 2) * per_token


@of("llava")
def test_without_a_budget_nothing_is_kept(both: Both) -> None:
    for _ in range(2):
        answer = both.plain.ask([user(picture(0), "What is it?")])
    assert answer.usage.cached_tokens == both.plain.model.cache.nbytes == 0
    assert (both.plain.encoded, both.plain.prepared) == (2, 2)


@of("llava")
def test_a_decoded_picture_is_known_by_what_the_model_sees_of_it(both: Both) -> None:
    colours = Image.new("P", (40, 30))
    colours.putpalette([255, 0, 0])
    others = colours.copy()
    others.putpalette([0, 255, 0])
    for image in (colours, others, colours.convert("RGB"), colours.convert("RGB").resize((30, 40))):
        both.ask([user(image, "What is it?")])
    assert both.cached.encoded == 3


@of(*CONVERSING)
def test_threads_go_on_from_the_same_sequences(both: Both) -> None:
    rng = Random(0)
    questions = [f"{question} {number}" for question in ("What is it?", "Where is it?") for number in range(4)]
    conversations = [[user(picture(rng.randrange(2)), BEFORE, rng.choice(questions))] for _ in range(24)]
    expected = [both.plain.ask(messages) for messages in conversations]
    for seed in range(2):
        both.cached.ask([user(picture(seed), BEFORE)])
    with ThreadPoolExecutor(4) as threads:
        answers = [*threads.map(both.cached.ask, conversations)]
    for answer, right in zip(answers, expected, strict=True):
        assert answer.text == right.text
        np.testing.assert_allclose(answer.logits, right.logits, rtol=0, atol=1e-5)
        assert answer.new < right.new, "whatever the order, what its picture left is there"


@of("llava")
def test_the_engine_finds_what_finished_and_what_was_left(both: Both, artifacts: dict[str, Artifact]) -> None:
    messages = [user(picture(0), "What is it?")]
    expected = both.plain.ask(messages, tokens=20)

    async def leave_then_ask() -> list[list[Chunk]]:
        engine = OnnxEngine(artifacts["llava"], ServeConfig(threads=1, concurrency=2))
        async with aclosing(engine.generate(asked(messages, 20))) as chunks:
            await anext(chunks)
        return [[chunk async for chunk in engine.generate(asked(messages, 20))] for _ in range(2)]

    for chunks in asyncio.run(leave_then_ask()):
        assert text_of(chunks) == expected.text
        assert chunks[-1].usage.cached_tokens == expected.usage.prompt_tokens - 1


@of("llava")
def test_cancelled_requests_do_no_harm(both: Both, artifacts: dict[str, Artifact]) -> None:
    questions = [[user(picture(i % 2), f"What is it? {i % 3}")] for i in range(12)]
    expected = [both.plain.ask(question, tokens=8).text for question in questions]

    async def storm() -> list[str]:
        engine = OnnxEngine(artifacts["llava"], ServeConfig(threads=1, concurrency=4))
        rng = Random(0)

        async def ask(question: Sequence[Message]) -> str:
            return text_of([chunk async for chunk in engine.generate(asked(question, 8))])

        for question in questions:
            task = asyncio.create_task(ask(question))
            await asyncio.sleep(rng.random() / 50)
            task.cancel()
        return await asyncio.gather(*map(ask, questions))

    assert asyncio.run(storm()) == expected


def test_a_loaded_model_keeps_what_it_is_told_to(artifact: Artifact) -> None:
    for model, cached in ((load(artifact.path, threads=1), True), (load(artifact.path, 1, cache_mb=0), False)):
        chunks = [[*model.stream("What is it?", [picture(0).data], Sampling(4, temperature=0.0))] for _ in range(2)]
        assert text_of(chunks[0]) == text_of(chunks[1])
        assert (chunks[1][-1].usage.cached_tokens > 0) == cached
