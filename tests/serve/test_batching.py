"""Requests that are answered together: they join and leave between tokens, and none takes another with it."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from exported import exported, half_pruned
from made_once import MakeOnce
from numpy.typing import NDArray
from PIL import Image
from running_engine import engine_of

from slimdeploy.artifact import Artifact, open_artifact
from slimdeploy.config import OnnxWeights, ServeConfig
from slimdeploy.kernels.library import library_file
from slimdeploy.serve.engine import Chunk, GenerationRequest, Message, Sampling, greedy
from slimdeploy.serve.engines.answer import Answer
from slimdeploy.serve.engines.onnx import OnnxEngine
from slimdeploy.serve.engines.onnx_rows import OwnCaches, SharedRows
from slimdeploy.serve.engines.onnx_sessions import OnnxSessions
from slimdeploy.serve.runtime import LoadedModel

pytestmark = [
    pytest.mark.usefixtures("traced_once"),
    pytest.mark.skipif(library_file() is None, reason="the kernels were not built"),
]
TOKENS = 12


def ask(question: str, images: Sequence[Image.Image] = (), **sampling: Any) -> GenerationRequest:
    settings = Sampling(**{"max_tokens": TOKENS, "temperature": 0.0} | sampling)
    return GenerationRequest((Message("user", (*images, question)),), settings)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (31, 40, 3), dtype=np.uint8))


QUESTIONS = [
    ("What?", []),
    ("What is it, then?", [picture(1)]),
    ("x" * 150, []),
    ("And this one here?", [picture(2), picture(3)]),
    ("A question that is somewhat longer than the others are.", [picture(1)]),
    ("Why?", []),
]


async def collect(engine: OnnxEngine, request: GenerationRequest) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


def joined(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks).strip()


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every run of the decoder over shared rows: the sequences, and tokens of prompts, that it has."""
    found: list[int] = []
    advance = SharedRows.advance

    def counted(rows: SharedRows, steps: Sequence[Any]) -> list[NDArray[np.float32]]:
        found.append(sum(step.tokens.count for step in steps))
        return advance(rows, steps)

    monkeypatch.setattr(SharedRows, "advance", counted)
    return found


def test_packed_graphs_share_rows_and_others_have_caches_of_their_own(
    packed_artifact: Artifact, artifact: Artifact
) -> None:
    with engine_of(packed_artifact) as packed, engine_of(artifact) as dense:
        assert isinstance(packed._decoding._rows, SharedRows)
        assert isinstance(dense._decoding._rows, OwnCaches)


def test_answers_are_the_same_alone_and_together(any_artifact: Artifact) -> None:
    async def together(engine: OnnxEngine) -> list[list[Chunk]]:
        return await asyncio.gather(*(collect(engine, ask(*question)) for question in QUESTIONS * 2))

    alone = LoadedModel(any_artifact, threads=1)
    expected = [alone.ask(question, images, greedy(TOKENS)) for question, images in QUESTIONS]
    with engine_of(any_artifact) as engine:
        assert [joined(chunks) for chunks in asyncio.run(together(engine))] == expected * 2


def test_pictures_and_prompts_do_not_wait_for_each_other_for_ever(packed_artifact: Artifact) -> None:
    async def client(engine: OnnxEngine, number: int) -> None:
        for seed in range(10):
            await collect(engine, ask("What is it?", [picture(100 * number + seed)], max_tokens=2 + seed % 3))

    async def several(engine: OnnxEngine) -> None:
        clients = [asyncio.create_task(client(engine, number)) for number in range(4)]
        _, waiting = await asyncio.wait(clients, timeout=60)
        if waiting:
            await engine.close()  # which ends them
        await asyncio.gather(*clients)

    with engine_of(packed_artifact) as engine:
        asyncio.run(several(engine))


def test_several_answers_are_made_in_one_run(packed_artifact: Artifact, sizes: list[int]) -> None:
    async def together(engine: OnnxEngine) -> None:
        await asyncio.gather(*(collect(engine, ask("What?", max_tokens=150, ignore_eos=True)) for _ in range(4)))

    with engine_of(packed_artifact) as engine:
        asyncio.run(together(engine))
    assert sizes.count(4) > 20


def test_a_prompt_is_read_in_pieces_while_others_are_answered(packed_artifact: Artifact, sizes: list[int]) -> None:
    order: list[str] = []

    async def follow(engine: OnnxEngine, name: str, request: GenerationRequest) -> None:
        async for _ in engine.generate(request):
            order.append(name)

    async def late(engine: OnnxEngine) -> None:
        running = asyncio.create_task(follow(engine, "first", ask("What?", max_tokens=100, ignore_eos=True)))
        while order.count("first") < 5:
            await asyncio.sleep(0.001)
        await asyncio.gather(running, follow(engine, "second", ask("y" * 180, max_tokens=2)))

    with engine_of(packed_artifact) as engine:
        asyncio.run(late(engine))
    before = order[: order.index("second")].count("first")
    assert before > 8, "the first answer went on while the second prompt was read"
    assert max(sizes[6:]) < 180


def test_the_cache_is_given_back_when_nobody_is_left(packed_artifact: Artifact) -> None:
    with engine_of(packed_artifact) as engine:
        asyncio.run(collect(engine, ask("What?")))
        rows: Any = engine._decoding._rows
        assert rows._cache is None


def test_requests_in_rows_that_others_left_go_on_from_their_own_conversations(packed_artifact: Artifact) -> None:
    """With what earlier requests left, two conversations at a time, in any order."""
    turns = [
        ("This is the first of two, which begins so.", "And then?"),
        ("The other one, however, is about a cat.", "Why?"),
    ]

    def conversation(which: int, answer: str) -> GenerationRequest:
        first, second = turns[which]
        messages = (
            Message("user", (picture(which), first)),
            Message("assistant", (answer,)),
            Message("user", (second,)),
        )
        return GenerationRequest(messages if answer else messages[:1], greedy(TOKENS))

    async def talk(engine: OnnxEngine) -> list[tuple[str, int]]:
        answers = [
            joined(chunks) for chunks in await asyncio.gather(*(collect(engine, conversation(n, "")) for n in (0, 1)))
        ]
        found = []
        for order in ((0, 1), (1, 0), (1, 1)):
            ended = await asyncio.gather(*(collect(engine, conversation(n, answers[n])) for n in order))
            found += [(joined(chunks), chunks[-1].usage.cached_tokens) for chunks in ended]
        return [*((answer, 0) for answer in answers), *found]

    with engine_of(packed_artifact, cache_mb=0) as engine:
        expected = [text for text, _ in asyncio.run(talk(engine))]
    with engine_of(packed_artifact, cache_mb=64) as engine:
        found = asyncio.run(talk(engine))
    assert [text for text, _ in found] == expected
    assert all(cached > 16 for _, cached in found[2:])


@pytest.mark.parametrize(
    ("family", "weights"), [("qwen2_5_vl", "packed-int8"), ("qwen3_vl", "packed-int8"), ("gemma3", "dense-fp32")]
)
def test_every_kind_of_decoder_answers_together_as_alone(
    family: str, weights: OnnxWeights, make_once: MakeOnce
) -> None:
    """Positions in three dimensions, features for inner blocks, tokens that see each other both ways."""
    artifact = open_artifact(exported(half_pruned(family, make_once), weights, make_once).folder)

    async def together(engine: OnnxEngine) -> list[list[Chunk]]:
        first = asyncio.create_task(collect(engine, ask("What?", max_tokens=60, ignore_eos=True)))
        await asyncio.sleep(0.05)
        return [await first, *await asyncio.gather(*(collect(engine, ask(*question)) for question in QUESTIONS[1:]))]

    alone = LoadedModel(artifact, threads=1)
    settings = Sampling(60, temperature=0.0, ignore_eos=True)
    expected = [alone.ask("What?", sampling=settings), *(alone.ask(q, p, greedy(TOKENS)) for q, p in QUESTIONS[1:])]
    with engine_of(artifact) as engine:
        assert isinstance(engine._decoding._rows, SharedRows) == weights.startswith("packed")
        assert [joined(chunks) for chunks in asyncio.run(together(engine))] == expected


def test_everybody_who_leaves_makes_room(any_artifact: Artifact) -> None:
    async def leave(engine: OnnxEngine, after: int) -> None:
        async with aclosing(engine.generate(ask("What is it?", [picture(after)], max_tokens=100))) as chunks:
            for _ in range(after):
                await anext(chunks)

    async def cancelled(engine: OnnxEngine, seconds: float) -> None:
        task = asyncio.create_task(collect(engine, ask("What?", max_tokens=100)))
        await asyncio.sleep(seconds)
        task.cancel()

    async def many(engine: OnnxEngine) -> None:
        leaving = [leave(engine, after) for after in (1, 2, 3, 5, 8)]
        await asyncio.gather(*leaving, *(cancelled(engine, seconds / 200) for seconds in range(8)))
        await asyncio.wait_for(collect(engine, ask("What?")), 20)

    with engine_of(any_artifact, concurrency=3) as engine:
        asyncio.run(many(engine))
        assert not engine._decoding._jobs
        assert not engine._decoding._waiting


@pytest.mark.parametrize("breaks", ["sampling", "run"])
def test_what_one_request_fails_on_ends_that_one_alone(
    breaks: str, any_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one with a seed."""

    def breaking(original: Callable[..., Any], broken: Callable[[Any, Any], bool]) -> Callable[..., Any]:
        def call(own: Any, given: Any) -> Any:
            if broken(own, given):
                raise OSError("broken")
            return original(own, given)

        return call

    def is_broken(answer: Answer) -> bool:
        return answer._sampling.seed is not None and len(answer.tokens) == 3

    if breaks == "sampling":
        monkeypatch.setattr(Answer, "take", breaking(Answer.take, lambda answer, _: is_broken(answer)))
    else:
        for kind in (SharedRows, OwnCaches):
            run = breaking(kind.advance, lambda _, steps: any(is_broken(step.sequence.answer) for step in steps))
            monkeypatch.setattr(kind, "advance", run)

    async def together(engine: OnnxEngine) -> list[Any]:
        requests = [collect(engine, ask("What?", seed=seed)) for seed in (None, 1, None)]
        return await asyncio.gather(*requests, return_exceptions=True)

    with engine_of(any_artifact) as engine:
        results = asyncio.run(together(engine))
        assert asyncio.run(collect(engine, ask("What?")))[-1].finish_reason
    failed = [result for result in results if isinstance(result, BaseException)]
    assert [type(each) for each in failed] == [OSError]
    assert all(result[-1].finish_reason for result in results if result not in failed)


@pytest.mark.parametrize("broken_part", ["advance", "begin", "one_token", "kept"])
def test_nobody_waits_for_ever_whatever_does_not_work(
    broken_part: str, any_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("broken")

    async def together(engine: OnnxEngine) -> None:
        await asyncio.wait_for(asyncio.gather(*(collect(engine, ask("What is it?")) for _ in range(4))), 20)

    with engine_of(any_artifact, cache_mb=8) as engine:
        with monkeypatch.context() as patched:
            for kind in (SharedRows, OwnCaches, OnnxSessions):
                if hasattr(kind, broken_part):
                    patched.setattr(kind, broken_part, broken)
            if broken_part == "kept":
                asyncio.run(together(engine))
            else:
                with pytest.raises(OSError, match="broken"):
                    asyncio.run(together(engine))
        assert asyncio.run(collect(engine, ask("What?")))[-1].finish_reason


def test_closing_ends_those_who_run_and_those_who_wait(packed_artifact: Artifact) -> None:
    async def close_early() -> list[Any]:
        engine = OnnxEngine(packed_artifact, ServeConfig(threads=1, concurrency=2))
        requests = [asyncio.create_task(collect(engine, ask("What?", max_tokens=200))) for _ in range(4)]
        await asyncio.sleep(0.05)
        await engine.close()
        return await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 10)

    results = asyncio.run(close_early())
    assert all(isinstance(each, list) or "shutting down" in str(each) for each in results)
    assert any(isinstance(each, BaseException) for each in results)
