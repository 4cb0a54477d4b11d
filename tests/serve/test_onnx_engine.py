"""The ONNX engine answers as transformers does, to several at once, and within its limits."""

import asyncio
import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artifacts import new_artifact
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import slimdeploy.serve.engines.onnx_sessions as onnx_sessions
from slimdeploy.artifact import Artifact, Manifest, bundle
from slimdeploy.config import ServeConfig
from slimdeploy.errors import ArtifactError, ServeError
from slimdeploy.serve.engine import (
    Chunk,
    EncodedImage,
    GenerationRequest,
    Grammar,
    Message,
    RequestError,
    Sampling,
    greedy,
)
from slimdeploy.serve.engines import create_engine
from slimdeploy.serve.engines.onnx import OnnxEngine
from slimdeploy.serve.model_files import ModelFacts, read_facts
from slimdeploy.serve.runtime import LoadedModel, load

QUESTIONS = ("What is it?", "And é?", "How many are there of them, all in all?")


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(count)
    return [Image.fromarray(rng.integers(0, 256, (31, 40 + i, 3), dtype=np.uint8)) for i in range(count)]


def user(question: str, images: Sequence[Image.Image] = ()) -> Message:
    return Message("user", (*images, question))


def ask(
    question: str = "What?", images: Sequence[Image.Image] = (), max_tokens: int = 8, **sampling: object
) -> GenerationRequest:
    settings = Sampling(max_tokens, **{"temperature": 0.0} | sampling)  # type: ignore[arg-type]
    return GenerationRequest((user(question, images),), settings)


async def collect(engine: OnnxEngine, request: GenerationRequest) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


def joined(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.fixture(scope="module")
def engine(artifact: Artifact) -> Iterator[OnnxEngine]:
    engine = OnnxEngine(artifact, ServeConfig(threads=1, concurrency=2))
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def model(artifact: Artifact) -> LoadedModel:
    return load(artifact.path, threads=1)


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answers_equal_transformers(model: LoadedModel, checkpoint: Path, question: str, images: int) -> None:
    theirs = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=pictures(images) or None, return_tensors="pt")
    with torch.no_grad():
        tokens = theirs.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.decode(tokens, skip_special_tokens=True).rstrip("\ufffd").strip()
    assert model.ask(question, pictures(images), greedy(24)) == expected


def test_a_picture_changes_the_answer(model: LoadedModel) -> None:
    black, white = (Image.new("RGB", (30, 30), colour) for colour in ("black", "white"))
    assert model.ask("What?", [black], greedy(16)) != model.ask("What?", [white], greedy(16))


def test_a_picture_may_be_a_file_or_bytes(model: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    pictures(1)[0].save(file)
    forms = (pictures(1)[0], file, str(file), file.read_bytes())
    assert len({model.ask("What?", [form], greedy(8)) for form in forms}) == 1


def test_answers_are_the_same_alone_and_among_others(artifact: Artifact, model: LoadedModel) -> None:
    async def together() -> list[list[Chunk]]:
        engine = OnnxEngine(artifact, ServeConfig(threads=1, concurrency=2))
        return await asyncio.gather(*(collect(engine, ask(q, pictures(n))) for q in QUESTIONS for n in (0, 1)))

    alone = [model.ask(q, pictures(n), greedy(8)) for q in QUESTIONS for n in (0, 1)]
    assert [joined(chunks).strip() for chunks in asyncio.run(together())] == alone


def test_every_token_is_counted_and_the_last_chunk_says_why(engine: OnnxEngine) -> None:
    chunks = asyncio.run(collect(engine, ask("What?", pictures(1), max_tokens=5)))
    assert [chunk.usage.completion_tokens for chunk in chunks] == list(range(1, len(chunks) + 1))
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"
    # USER:, space, four image tokens, newline, "What?", space, ASSISTANT:
    assert chunks[0].usage.prompt_tokens == len("USER: ") + 4 + 1 + len("What? ") + len("ASSISTANT:")


def test_equal_seeds_repeat_and_others_differ(model: LoadedModel) -> None:
    answers = [model.ask("What?", sampling=Sampling(12, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_stop_string_ends_the_answer_before_it(engine: OnnxEngine) -> None:
    whole = joined(asyncio.run(collect(engine, ask(max_tokens=16))))
    stop = whole[3:6]
    chunks = asyncio.run(collect(engine, ask(max_tokens=16, stop=(stop,))))
    assert joined(chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_an_answer_ends_where_the_context_does(engine: OnnxEngine) -> None:
    question = "x" * (256 - len("USER: ") - len(" ASSISTANT:") - 3)
    chunks = asyncio.run(collect(engine, ask(question, max_tokens=100)))
    assert chunks[-1].usage.prompt_tokens == 253
    assert len(chunks) <= 3


@pytest.mark.parametrize("images", [0, 1])
def test_a_prompt_that_is_too_long_is_refused(engine: OnnxEngine, images: int) -> None:
    with pytest.raises(RequestError, match="may have 255, with its answer 256") as caught:
        asyncio.run(collect(engine, ask("x" * 239, pictures(images))))
    assert caught.value.code == "context_length_exceeded"
    assert asyncio.run(collect(engine, ask()))


def test_what_the_template_would_pass_over_is_refused(engine: OnnxEngine) -> None:
    picture = pictures(1)[0]
    unplaced = GenerationRequest((Message("assistant", ("a", picture)), user("b")), Sampling(4))
    with pytest.raises(RequestError, match="put images into user messages"):
        asyncio.run(collect(engine, unplaced))


def test_a_system_message_without_a_place_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact.path, tmp_path / "copy")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages if m.role == 'user' %}{{ m.content[0].text }}{% endfor %}"
    )
    model = OnnxEngine(Artifact(folder, artifact.manifest), ServeConfig(threads=1))
    request = GenerationRequest((Message("system", ("Be brief.",)), user("Hi")), Sampling(2))
    with pytest.raises(RequestError, match="no place for a system message") as caught:
        asyncio.run(collect(model, request))
    assert caught.value.param == "messages[0]"


def test_a_message_cannot_claim_a_picture(engine: OnnxEngine) -> None:
    chunks = asyncio.run(collect(engine, ask("an <image> here", max_tokens=2)))
    assert chunks[0].usage.prompt_tokens == len("USER: an <image> here ASSISTANT:")


def test_requests_beyond_the_concurrency_wait_in_the_order_of_their_arrival(artifact: Artifact) -> None:
    started: list[int] = []

    async def run(engine: OnnxEngine, number: int) -> None:
        async for chunk in engine.generate(ask(max_tokens=6)):
            if chunk.usage.completion_tokens == 1:
                started.append(number)

    async def all_of_them() -> None:
        # Without what earlier requests computed, all take as long.
        engine = OnnxEngine(artifact, ServeConfig(threads=1, concurrency=2, cache_mb=0))
        await asyncio.gather(*(run(engine, number) for number in range(6)))

    asyncio.run(all_of_them())
    # Two run at a time, so neighbours may swap, and no one overtakes by more.
    assert all(abs(number - place) <= 1 for place, number in enumerate(started))


def test_closing_or_cancelling_frees_the_slot(artifact: Artifact) -> None:
    async def leave_then_ask() -> list[Chunk]:
        engine = OnnxEngine(artifact, ServeConfig(threads=1, concurrency=2))
        for _ in range(4):
            async with aclosing(engine.generate(ask(max_tokens=100))) as chunks:
                await anext(chunks)
            task = asyncio.create_task(collect(engine, ask(max_tokens=100)))
            await asyncio.sleep(0.01)
            task.cancel()
        return await asyncio.wait_for(collect(engine, ask(max_tokens=2)), 10)

    assert len(asyncio.run(leave_then_ask())) <= 2


def test_the_event_loop_stays_free(engine: OnnxEngine) -> None:
    async def longest_pause() -> float:
        task = asyncio.create_task(collect(engine, ask(max_tokens=60)))
        loop, pauses = asyncio.get_running_loop(), [0.0]
        while not task.done():
            before = loop.time()
            await asyncio.sleep(0.001)
            pauses.append(loop.time() - before)
        assert len(pauses) > 5
        return sorted(pauses)[len(pauses) // 2]

    assert asyncio.run(longest_pause()) < 0.05


def test_who_leaves_before_the_turn_of_his_pictures_is_gone_at_once(engine: OnnxEngine) -> None:
    others_are_read = threading.Event()

    async def leave() -> None:
        engine._pictures.submit(others_are_read.wait, 10)
        leaving = asyncio.create_task(collect(engine, ask("What?", pictures(1))))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.wait([leaving], timeout=2)
        assert leaving.cancelled()
        others_are_read.set()
        assert await collect(engine, ask("What?", pictures(2)))

    asyncio.run(leave())


def test_a_closed_engine_refuses(artifact: Artifact) -> None:
    async def close_then_ask() -> None:
        engine = OnnxEngine(artifact, ServeConfig(threads=1))
        await engine.close()
        await collect(engine, ask())

    with pytest.raises(ServeError, match="shutting down"):
        asyncio.run(close_then_ask())


def test_who_waits_for_a_thread_when_the_engine_is_closed_is_told_so(artifact: Artifact) -> None:
    async def ask_and_close() -> tuple[list[Any], list[Any]]:
        engine = OnnxEngine(artifact, ServeConfig(threads=1, grammar_timeout_s=1))
        slow, quick = Grammar("json_schema", '{"type": "integer", "multipleOf": 1000003}'), Grammar("regex", "a")
        waiting = asyncio.gather(*map(engine.check_grammar, (slow, quick)), return_exceptions=True)
        await asyncio.sleep(0.1)
        await engine.close()
        late = engine.tokenize("a"), engine.tokenize((user("a"),)), engine.detokenize([1]), engine.check_grammar(quick)
        return await waiting, await asyncio.gather(*late, return_exceptions=True)

    (tried, waited), late = asyncio.run(ask_and_close())
    assert isinstance(tried, RequestError)
    for error in (waited, *late):
        assert isinstance(error, ServeError)
        assert "shutting down" in str(error)


@pytest.mark.parametrize(("format_", "message"), [("vllm", "vllm serve"), ("checkpoint", "export.format = 'onnx'")])
def test_artifacts_of_other_formats_name_the_way(tmp_path: Path, format_: str, message: str) -> None:
    with pytest.raises(ServeError, match=message):
        create_engine(Artifact(tmp_path, Manifest(format_, "m", "llava")), ServeConfig())


@pytest.mark.parametrize("name", ["decoder_model_merged.onnx", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_missing_file_is_named(artifact: Artifact, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(artifact.path, tmp_path / "copy")
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        OnnxEngine(Artifact(folder, artifact.manifest), ServeConfig())


def test_a_broken_graph_or_configuration_is_named(artifact: Artifact, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact.path, tmp_path / "copy")
    shutil.copy(folder / "embed_tokens.onnx", folder / "decoder_model_merged.onnx")
    with pytest.raises(ArtifactError, match=r"decoder_model_merged\.onnx has no logits"):
        OnnxEngine(Artifact(folder, artifact.manifest), ServeConfig())
    (folder / "vision_encoder.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=r"vision_encoder\.onnx cannot be loaded"):
        OnnxEngine(Artifact(folder, artifact.manifest), ServeConfig())
    (folder / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 2}, "image_token_id": 4}))
    with pytest.raises(ArtifactError, match="max_position_embeddings"):
        OnnxEngine(Artifact(folder, artifact.manifest), ServeConfig())


def test_two_onnxruntimes_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_sessions, "_is_installed", lambda _: True)
    with pytest.raises(ServeError, match=r"both installed.*slimdeploy\[edge\] or slimdeploy\[edge-gpu\]"):
        onnx_sessions.import_onnxruntime()


def test_a_missing_onnxruntime_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ServeError, match=r"install slimdeploy\[edge\]"):
        onnx_sessions.import_onnxruntime()


def test_the_server_imports_nothing_that_a_device_lacks() -> None:
    code = (
        "import sys; import slimdeploy.serve.app, slimdeploy.serve.runtime, slimdeploy.serve.engines.onnx, "
        "slimdeploy.serve.server, onnxruntime; "
        "print(sorted({'torch', 'transformers', 'onnx', 'optimum', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_features_that_are_no_tokens_of_the_picture_are_the_artifacts_error(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = {"image_features": np.zeros((1, 3, 64), np.float32)}
    monkeypatch.setattr(onnx_sessions.OnnxSessions, "encode_picture", lambda *_: features)
    never_seen = [Image.new("RGB", (33, 33))]
    with pytest.raises(ArtifactError, match=r"vision_encoder\.onnx gives 3 features for a picture of 4 tokens"):
        asyncio.run(collect(engine, ask("What?", never_seen)))


def test_a_picture_that_cannot_be_resized_is_the_requests_error(engine: OnnxEngine) -> None:
    with pytest.raises(RequestError, match="too elongated"):
        asyncio.run(collect(engine, ask("What?", [Image.new("RGB", (1, 500_000))])))


def test_a_picture_that_cannot_be_decoded_is_the_requests_error_and_is_named(engine: OnnxEngine) -> None:
    stream = io.BytesIO()
    pictures(1)[0].save(stream, "png")
    whole = EncodedImage(stream.getvalue(), "messages[0].content[0].image_url.url", 10_000)
    cut = replace(whole, data=whole.data[:-200], param="messages[0].content[1].image_url.url")
    assert asyncio.run(collect(engine, GenerationRequest((Message("user", (whole, "a")),), Sampling(2))))
    with pytest.raises(RequestError, match="truncated") as caught:
        asyncio.run(collect(engine, GenerationRequest((Message("user", (whole, cut, "a")),), Sampling(2))))
    assert caught.value.param == cut.param


def test_control_tokens_cut_into_parts_stay_plain_text(artifact: Artifact, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact.path, tmp_path / "copy")
    joining = "{{ bos_token }}{% for m in messages %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(joining + "{% endfor %}")
    joined_parts = OnnxEngine(Artifact(folder, artifact.manifest), ServeConfig(threads=1))
    request = GenerationRequest((Message("user", ("a<ima ", "ge></", " s>b")),), Sampling(1))
    # A picture that is claimed would be refused, and an end token would be one token.
    (chunk,) = asyncio.run(collect(joined_parts, request))
    assert chunk.usage.prompt_tokens == 1 + len("a<image></s>b")


@pytest.mark.parametrize("max_tokens", [0, -5])
def test_an_answer_without_tokens_is_refused(model: LoadedModel, max_tokens: int) -> None:
    with pytest.raises(RequestError, match=f"'max_tokens' = {max_tokens}: should be at least 1"):
        model.ask("What?", sampling=greedy(max_tokens))


def test_a_bundle_answers_as_its_artifact(
    artifact: Artifact, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle(artifact, tmp_path / "tiny.zip")
    answers = [each.ask("What is it?", sampling=greedy(4)) for each in (load(tmp_path / "tiny.zip", threads=1), model)]
    assert answers[0] == answers[1]


def test_an_artifact_of_another_format_is_not_loaded_by_any_way(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "other", Manifest("vllm", "m", "llava")) as folder:
        (folder / "config.json").write_text("{}")
    with pytest.raises(ServeError, match="the format 'vllm'"):
        load(tmp_path / "other")
    with pytest.raises(ServeError, match="the format 'vllm'"):
        LoadedModel(Artifact(tmp_path / "other", Manifest("vllm", "m", "llava")), threads=1)


def test_both_layouts_of_a_configuration_say_the_same(checkpoint: Path, hub_checkpoint: Path) -> None:
    assert read_facts(checkpoint) == read_facts(hub_checkpoint) == ModelFacts(256, 4, frozenset({2}), "llava")
