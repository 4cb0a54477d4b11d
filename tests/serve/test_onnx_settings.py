"""The ONNX engine keeps to a request's settings: penalties, stop tokens and log probabilities are the model's own."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from slimdeploy.artifact import Artifact
from slimdeploy.serve.engine import Chunk, RequestError, Sampling
from slimdeploy.serve.engines import answer as answers
from slimdeploy.serve.penalties import Logits
from slimdeploy.serve.runtime import LoadedModel, load
from slimdeploy.serve.sampling import Sampler

GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 40, 3), dtype=np.uint8))
IMAGE_TOKEN = 4


@pytest.fixture(scope="module")
def model(artifact: Artifact) -> LoadedModel:
    return load(artifact.path, threads=1)


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> tuple[LlavaForConditionalGeneration, Any, dict[str, Any]]:
    """The model, its tokenizer, and a question with a picture as transformers prepares it."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=[PICTURE], return_tensors="pt")
    reference = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return reference, processor.tokenizer, inputs


class RecordingSampler(Sampler):
    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int]) -> None:
        self.prompt_ids, self.tokens = list(prompt_ids), list[int]()
        super().__init__(sampling, self.prompt_ids)

    def __call__(self, logits: Logits) -> int:
        self.tokens.append(super().__call__(logits))
        return self.tokens[-1]


@pytest.fixture
def samplers(monkeypatch: pytest.MonkeyPatch) -> list[RecordingSampler]:
    """One for every answer, in order."""
    made: list[RecordingSampler] = []

    def new(sampling: Sampling, prompt_ids: Iterable[int]) -> RecordingSampler:
        made.append(RecordingSampler(sampling, prompt_ids))
        return made[-1]

    monkeypatch.setattr(answers, "Sampler", new)
    return made


def answer(model: LoadedModel, **settings: Any) -> list[Chunk]:
    return list(model.stream("What?", [PICTURE], Sampling(**GREEDY | settings)))


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def told(chunks: Sequence[Chunk]) -> list[Any]:
    return [each for chunk in chunks for each in chunk.logprobs or ()]


@pytest.mark.parametrize("penalty", [1.0, 1.3, 3.0])
def test_greedy_answers_with_a_repetition_penalty_equal_transformers(
    model: LoadedModel, theirs: Any, penalty: float
) -> None:
    reference, tokenizer, inputs = theirs
    with torch.no_grad():
        ids = reference.generate(**inputs, max_new_tokens=24, do_sample=False, repetition_penalty=penalty)
    expected = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text_of(answer(model, repetition_penalty=penalty)) == expected.rstrip("\ufffd")


def test_logprobs_are_log_softmax_of_the_raw_logits_whatever_the_settings(
    model: LoadedModel, theirs: Any, samplers: list[RecordingSampler]
) -> None:
    reference, _, inputs = theirs
    settings = {"temperature": 1.5, "seed": 3, "repetition_penalty": 1.4, "presence_penalty": 1.0, "top_k": 100}
    tokens = told(answer(model, **settings, logprobs=5))
    ids = torch.cat([inputs["input_ids"], torch.tensor([samplers[0].tokens])], 1)
    with torch.no_grad():
        given = dict(inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = reference(**given).logits[0, inputs["input_ids"].shape[1] - 1 : -1]
    for token, id_, row in zip(tokens, samplers[0].tokens, logits.log_softmax(-1), strict=True):
        assert token.logprob == pytest.approx(row[id_].item(), abs=1e-3)
        likeliest = row.topk(5).values.tolist()
        assert [each.logprob for each in token.alternatives] == pytest.approx(likeliest, abs=1e-3)


def test_a_chunk_without_text_carries_its_tokens_bytes_all_the_same(model: LoadedModel) -> None:
    chunks = answer(model, logprobs=0, temperature=1.0, seed=1)
    assert any(not chunk.text and told([chunk])[0].data for chunk in chunks)
    data = b"".join(token.data or b"" for token in told(chunks))
    assert data.decode(errors="replace").rstrip("\ufffd") == text_of(chunks)


def test_a_stop_token_ends_the_answer_and_gives_no_text(
    model: LoadedModel, theirs: Any, samplers: list[RecordingSampler]
) -> None:
    whole = answer(model, logprobs=0)
    tokens = samplers[0].tokens
    stop = tokens[6]
    *before, last = answer(model, stop_tokens=(stop,), logprobs=0)
    count = tokens.index(stop)
    assert told(before) == told(whole)[:count]
    assert (last.finish_reason, last.logprobs, last.usage.completion_tokens) == ("stop", (), count + 1)
    assert text_of([*before, last]) == theirs[1].decode(tokens[:count], skip_special_tokens=True).rstrip("\ufffd")


def test_tokens_of_a_picture_are_not_penalised(
    model: LoadedModel, theirs: Any, samplers: list[RecordingSampler]
) -> None:
    answer(model, max_tokens=1)
    ids = theirs[2]["input_ids"][0].tolist()
    assert IMAGE_TOKEN in ids
    assert samplers[0].prompt_ids == [token for token in ids if token != IMAGE_TOKEN]


@pytest.mark.parametrize("logprobs", [None, 2])
def test_logprobs_change_no_answer(model: LoadedModel, logprobs: int | None) -> None:
    settings = {"temperature": 1.2, "seed": 8, "top_p": 0.95, "frequency_penalty": 0.4}
    chunks = answer(model, **settings, logprobs=logprobs)
    assert text_of(chunks) == text_of(answer(model, **settings))
    assert all((chunk.logprobs is None) == (logprobs is None) for chunk in chunks)


def test_the_models_own_ends_are_passed_over_where_that_is_asked(
    model: LoadedModel, samplers: list[RecordingSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(model)
    end = samplers[0].tokens[4]
    monkeypatch.setattr(model._generator._model, "facts", replace(model._generator._model.facts, end_tokens={end}))
    assert answer(model)[-1].finish_reason == "stop"
    chunks = answer(model, ignore_eos=True)
    assert (chunks[-1].finish_reason, len(chunks)) == ("length", len(samplers[0].tokens))


@pytest.mark.parametrize("ending", ["stop_tokens", "stop"])
def test_nothing_ends_an_answer_before_its_fewest_tokens(
    ending: str, model: LoadedModel, samplers: list[RecordingSampler]
) -> None:
    whole = answer(model)
    stop = samplers[0].tokens[3] if ending == "stop_tokens" else text_of(whole)[3:5]
    assert len(answer(model, **{ending: (stop,)})) < 10
    chunks = answer(model, **{ending: (stop,)}, min_tokens=10)
    assert len(chunks) >= 10
    if ending == "stop_tokens":
        assert stop not in samplers[-1].tokens[:10]


def test_biases_forbid_tokens_and_force_them(model: LoadedModel, samplers: list[RecordingSampler]) -> None:
    answer(model)
    first = samplers[0].tokens[0]
    answer(model, logit_bias={first: -100.0})
    assert first not in samplers[1].tokens
    answer(model, logit_bias={first: 100.0}, max_tokens=3)
    assert samplers[2].tokens == [first] * 3


def test_a_bias_for_a_token_that_the_model_does_not_have_is_refused(model: LoadedModel) -> None:
    with pytest.raises(RequestError, match=r"'logit_bias' names token 100000, and the model has \d+") as caught:
        answer(model, logit_bias={100_000: 1.0})
    assert caught.value.param == "logit_bias"
