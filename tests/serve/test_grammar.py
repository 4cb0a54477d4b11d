"""An answer under a grammar is what the grammar says, whatever the logits; and no grammar takes longer than it may."""

import json
import os
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from word_tokenizers import END, byte_level, of_words

import slimdeploy.serve.grammar as grammar_module
from slimdeploy.serve.engine import Chunk, Grammar, GrammarKind, RequestError, Sampling, Usage
from slimdeploy.serve.engines.answer import Answer
from slimdeploy.serve.grammar import Grammars
from slimdeploy.serve.text import Text

ENDS = frozenset({END})
TOKENIZERS = (byte_level, of_words)


@cache
def text_of(tokenizer: Callable[[Path], Path]) -> Text:
    return Text(tokenizer(Path(mkdtemp())))


@cache
def grammars_of(tokenizer: Callable[[Path], Path], ends: frozenset[int] = ENDS) -> Grammars:
    return Grammars(text_of(tokenizer), ends, 20.0)


def answered(tokenizer: Callable[[Path], Path], grammar: Grammar, of_noise: int, **sampling: Any) -> list[Chunk]:
    """By logits of noise, among which the likeliest token is any."""
    text = text_of(tokenizer)
    wanted = Sampling(**{"max_tokens": 400, "temperature": 0.0, "grammar": grammar} | sampling)
    constraint = grammars_of(tokenizer).constraint(grammar)
    answer = Answer(wanted, text, (), ENDS, wanted.max_tokens, Usage(), constraint)
    rng = np.random.default_rng(of_noise)
    chunks = [answer.take(noise(rng, text))]
    while chunks[-1].finish_reason is None:
        chunks.append(answer.take(noise(rng, text)))
    return chunks


def noise(rng: np.random.Generator, text: Text, beyond: int = 7) -> NDArray[np.float32]:
    """Of more tokens than the tokenizer has, as many models give them."""
    return rng.standard_normal(text.vocabulary + beyond).astype(np.float32)


def said(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


# No \d: Rust's Unicode has digits that Python's does not know.
letters = st.sampled_from('ab 1é\n/"{.')
patterns = st.recursive(
    st.one_of(letters.map(re.escape), st.sampled_from(["[a-c]", "[^a]", ".", "[0-9]", "[ab ]"])),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format),
        inner.map("({}){{1,3}}".format),
        inner.map("({})?".format),
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(pattern=patterns, seed=st.integers(0, 2**32))
def test_an_answer_matches_its_regular_expression(tokenizer: Callable[[Path], Path], pattern: str, seed: int) -> None:
    for temperature in (0.0, 1.0):
        chunks = answered(tokenizer, Grammar("regex", pattern), seed, temperature=temperature, seed=seed)
        assert chunks[-1].finish_reason == "stop"
        assert re.fullmatch(pattern, said(chunks)), said(chunks)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=15, deadline=None)
@given(choices=st.lists(st.text('ab .*\\|{"é\n/', min_size=1, max_size=5), min_size=1, max_size=4), seed=st.integers(0))
def test_an_answer_is_one_of_its_choices(tokenizer: Callable[[Path], Path], choices: list[str], seed: int) -> None:
    assert said(answered(tokenizer, Grammar("choice", json.dumps(choices)), seed % 2**32)) in choices


SCHEMAS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    (
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 12}}, "required": ["a"],
         "additionalProperties": False},
        lambda value: set(value) == {"a"} and 3 <= value["a"] <= 12,
    ),
    ({"enum": ["yes", 12, None, {"a": []}]}, lambda value: value in ["yes", 12, None, {"a": []}]),
    (
        {"type": "array", "items": {"type": "string", "maxLength": 2}, "minItems": 1, "maxItems": 3},
        lambda value: 1 <= len(value) <= 3 and all(len(each) <= 2 for each in value),
    ),
    (
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"l": {"anyOf": [
            {"$ref": "#/$defs/tree"}, {"type": "null"}]}}, "required": ["l"], "additionalProperties": False}}},
        lambda value: set(value) == {"l"},
    ),
    ({"type": "string", "pattern": "^(ab|1)+$", "maxLength": 6}, lambda value: bool(re.fullmatch("(ab|1)+", value))),
]  # fmt: skip


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_an_answer_is_valid_json_of_its_schema(tokenizer: Callable[[Path], Path], number: int) -> None:
    schema, is_valid = SCHEMAS[number]
    for seed in range(12):
        chunks = answered(tokenizer, Grammar("json_schema", json.dumps(schema)), seed, max_tokens=2000)
        assert chunks[-1].finish_reason == "stop"
        assert is_valid(json.loads(said(chunks)))


def test_any_object_is_json_and_blanks_end() -> None:
    whole = [answered(byte_level, Grammar("json_object"), seed, max_tokens=300) for seed in range(10)]
    objects = [json.loads(said(chunks)) for chunks in whole if chunks[-1].finish_reason == "stop"]
    assert objects
    assert all(isinstance(each, dict) for each in objects)
    assert not any(re.search(r"\s{50}", said(chunks)) for chunks in whole)


def test_an_answer_that_is_cut_says_so() -> None:
    chunks = answered(byte_level, Grammar("regex", "a{20}"), 0, max_tokens=5)
    assert chunks[-1].finish_reason == "length"
    assert re.fullmatch("a+", said(chunks))
    assert answered(byte_level, Grammar("regex", "a{5}"), 0, max_tokens=5)[-1].finish_reason == "stop"


def test_the_model_may_end_where_the_answer_may_and_only_there() -> None:
    text = text_of(byte_level)
    constraint = grammars_of(byte_level).constraint(Grammar("regex", "a1?"))
    logits = np.zeros(text.vocabulary, np.float32)
    assert constraint(logits)[END] == -np.inf
    constraint.count(next(token for token in range(text.vocabulary) if text.token(token)[1] == b"a"))
    assert constraint(logits)[END] == 0
    assert not constraint.is_complete
    constraint.count(END)
    assert constraint.is_complete


def test_every_end_of_a_model_may_end_it_also_one_that_is_a_word() -> None:
    text = text_of(byte_level)
    word = next(token for token in range(text.vocabulary) if text.token(token)[1] == b"b")
    constraint = grammars_of(byte_level, frozenset({END, 1, word, 10**6})).constraint(Grammar("regex", "(b|c)?"))
    assert {END, 1, word} <= set(np.flatnonzero(constraint(np.zeros(text.vocabulary, np.float32)) == 0).tolist())
    constraint = grammars_of(byte_level, frozenset({END, 1, word})).constraint(Grammar("regex", "b|c"))
    assert constraint(np.zeros(text.vocabulary, np.float32))[word] == -np.inf


@pytest.mark.parametrize("settings_", [{"ignore_eos": True}, {"min_tokens": 50}])
def test_a_complete_answer_ends_whatever_else_says_that_it_goes_on(settings_: dict[str, Any]) -> None:
    for pattern in ("", "ab?", "(ab){3}", "[ab]{0,4}"):
        chunks = answered(byte_level, Grammar("regex", pattern), 3, **settings_)
        assert chunks[-1].finish_reason == "stop"
        assert re.fullmatch(pattern, said(chunks))
    # What can go on does so.
    assert len(said(answered(byte_level, Grammar("regex", "[ab]{0,40}"), 3, max_tokens=60, **settings_))) == 40


def test_stop_texts_end_an_answer_before_it_is_complete() -> None:
    chunks = answered(byte_level, Grammar("regex", "a{3}1{3}"), 0, stop=("a1",))
    assert (said(chunks), chunks[-1].finish_reason) == ("aa", "stop")


def test_biases_and_penalties_choose_among_what_may_come_and_logprobs_are_the_models_own() -> None:
    text = text_of(byte_level)
    a, b = (next(token for token in range(text.vocabulary) if text.token(token)[1] == each) for each in (b"a", b"b"))
    settings_ = {"logit_bias": {b: 100.0, 9: 100.0}, "presence_penalty": 2.0, "repetition_penalty": 1.5, "logprobs": 2}
    chunks = answered(byte_level, Grammar("regex", "[ab]{4}"), 0, **settings_)
    assert said(chunks) == "bbbb"
    first = chunks[0].logprobs
    assert first is not None
    logits = noise(np.random.default_rng(0), text)
    log_softmax = logits - np.log(np.exp(logits).sum())
    assert first[0].logprob == pytest.approx(log_softmax[b], rel=1e-4)
    assert first[0].alternatives[0].logprob == pytest.approx(log_softmax.max(), rel=1e-4)
    assert a != b


@pytest.mark.parametrize(
    "sampling", [{"top_k": 300}, {"top_k": 3}, {"top_p": 0.5}, {"top_p": 0.0}, {"min_p": 0.5}, {"temperature": 1e-6}]
)
def test_tokens_that_may_not_come_are_never_drawn(sampling: dict[str, float]) -> None:
    for seed in range(20):
        wanted = {"temperature": 1.5, "seed": seed} | sampling
        assert re.fullmatch("[ab]{6}", said(answered(of_words, Grammar("regex", "[ab]{6}"), seed, **wanted)))


def test_a_model_without_the_tokens_is_an_error_that_says_so() -> None:
    constraint = grammars_of(byte_level).constraint(Grammar("regex", "a", "structured_outputs.regex"))
    with pytest.raises(RequestError, match="no token with which its answer could go on") as caught:
        constraint(np.zeros(4, np.float32))
    assert caught.value.param == "structured_outputs.regex"


def test_answers_have_matchers_of_their_own() -> None:
    grammars, text = grammars_of(byte_level), text_of(byte_level)
    first, second = (grammars.constraint(Grammar("regex", "ab?")) for _ in range(2))
    first.count(next(token for token in range(text.vocabulary) if text.token(token)[1] == b"a"))
    logits = np.zeros(text.vocabulary, np.float32)
    assert first(logits)[END] == 0
    assert second(logits)[END] == -np.inf


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "(?=a)b", "look-around, including look-ahead and look-behind, is not supported"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", "[", "unclosed character class"),
        ("regex", "a)(b", "unopened group"),
        ("regex", "a\\", "ends with a backslash"),
        ("regex", "(" * 2000 + ")" * 2000, "nest"),
        ("regex", "x" * 200_001, "200001 characters; at most 200000"),
        ("json_schema", '{"not": {}}', 'Unimplemented keys: ["not"]'),
        ("json_schema", '{"oneOf": [{"type": "string"}, {"maxLength": 3}]}', "oneOf constraints are not supported"),
        ("json_schema", '{"$ref": "#"}', "no text can be like this"),
        ("json_schema", '{"$ref": "file:///etc/passwd"}', "is not present in a registry"),
        ("json_schema", '{"type": "string", "format": "odd"}', "Unknown format: odd"),
        ("json_schema", '{"uniqueItems": true, "x-guidance": {"lenient": true}}', "uniqueItems"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_reason(kind: GrammarKind, source: str, reason: str) -> None:
    with pytest.raises(RequestError) as caught:
        grammars_of(byte_level).check(Grammar(kind, source, "where"))
    assert reason in str(caught.value)
    assert caught.value.param == "where"
    assert not re.search(r"coerce_one_of|%json|/src/|\n|line \d", str(caught.value))


def chain(links: int) -> dict[str, Any]:
    definitions = {f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(links)}
    return {"$ref": "#/$defs/d0", "$defs": definitions | {f"d{links}": {"type": "string"}}}


def products(count: int, each: int) -> dict[str, Any]:
    return {
        "allOf": [
            {"anyOf": [{"properties": {f"a{i}_{j}": {"type": "string"}}} for j in range(each)]} for i in range(count)
        ]
    }


REFUSED: dict[str, tuple[Grammar, str]] = {
    "a divisor": (Grammar("json_schema", '{"type": "integer", "multipleOf": 1000003}'), "longer than 2 s"),
    "references": (Grammar("json_schema", json.dumps(chain(2000))), "nested too deeply"),
    "products": (Grammar("json_schema", json.dumps(products(8, 8))), "schema too large"),
    "properties": (
        Grammar("json_schema", json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(6000)}})),
        "longer than 2 s",
    ),
}
HARMLESS: dict[str, Grammar] = {
    "nested counts": Grammar("regex", "(a{1,1000}){1,1000}"),
    "a large count": Grammar("regex", "x{0,100000}"),
    "counts of anything": Grammar("regex", "(.{0,100}){0,100}(x|y)"),
    "words of any language": Grammar("regex", r"(\p{L}{1,50}\s){1,50}"),
    "many texts": Grammar("choice", json.dumps([f"text {n}" for n in range(10_000)])),
    "a long text": Grammar("json_schema", '{"type": "string", "minLength": 500000, "maxLength": 1000000}'),
    "a long list": Grammar("json_schema", '{"type": "array", "minItems": 1000000}'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_grammar_that_explodes_is_refused_in_time(name: str) -> None:
    grammar, reason = REFUSED[name]
    grammars = Grammars(text_of(byte_level), ENDS, timeout_s=2.0)
    for seconds in (4, 0.5):  # known the second time
        start = time.perf_counter()
        with pytest.raises(RequestError, match=reason):
            grammars.constraint(grammar)
        assert time.perf_counter() - start < seconds
        assert grammars.is_tried(grammar)


def test_a_trial_that_fails_by_itself_passes_no_grammar_and_blames_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(grammar_module._LIMITS, "of_no_version", 1)
    with pytest.raises(RuntimeError, match="of_no_version"):
        Grammars(text_of(byte_level), ENDS, timeout_s=20.0).check(Grammar("regex", "a"))


def test_what_a_terminal_tells_the_server_reaches_no_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "trial.py"
    program.write_text("import os; print(f'group {os.getpgrp()}', end='')")
    monkeypatch.setattr(grammar_module, "_TRIAL", program)
    with pytest.raises(RequestError, match=r"group \d+") as caught:
        Grammars(text_of(byte_level), ENDS, timeout_s=20.0).check(Grammar("regex", "a"))
    assert not str(caught.value).endswith(f"group {os.getpgrp()}")


@pytest.mark.parametrize("name", HARMLESS)
def test_large_counts_cost_no_token_much_time(name: str) -> None:
    """Masks are made in the thread that answers all requests."""
    text = text_of(byte_level)
    constraint = Grammars(text, ENDS, timeout_s=5.0).constraint(HARMLESS[name])
    rng = np.random.default_rng(0)
    slowest = 0.0
    for _ in range(50):
        start = time.thread_time()
        token = int(constraint(noise(rng, text), ENDS).argmax())
        constraint.count(token)
        slowest = max(slowest, time.thread_time() - start)
        if constraint.is_complete:
            break
    assert slowest < 0.1


def test_an_answer_that_becomes_too_complex_is_an_error_that_says_so() -> None:
    constraint = grammars_of(byte_level).constraint(Grammar("regex", "((a{1,1000}){1,1000}){1,1000}"))
    a = next(token for token in range(1000) if text_of(byte_level).token(token)[1] == b"a")
    logits = np.zeros(text_of(byte_level).vocabulary, np.float32)

    def go_on() -> None:
        for _ in range(2000):
            constraint(logits)
            constraint.count(a)

    with pytest.raises(RequestError, match="too complex; make it simpler"):
        go_on()
