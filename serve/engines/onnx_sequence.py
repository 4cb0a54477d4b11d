"""A sequence in the decoder: it goes on from what earlier ones left, and leaves what it computed to later ones."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat

from ..positions import token_kinds
from .onnx_model import OnnxModel, Prompt, Question
from .onnx_sessions import KeyValueCache
from .prefix_cache import Pieces


@dataclass
class RunningSequence:
    """prompt: what is new of it. cached_tokens: before those. answer: ids that were given to the decoder in turn."""

    prompt: Prompt
    cache: KeyValueCache
    cached_tokens: int
    answer: list[int] = field(default_factory=list)


@contextmanager
def running(model: OnnxModel, question: Question, limit: int) -> Iterator[RunningSequence]:
    """A sequence with room for an answer of `limit` tokens. However it ends, its keys and values are kept."""
    asked = pieces_of(model, question)
    sequence = _begun(model, question, asked, limit)
    try:
        yield sequence
    finally:
        cache = sequence.cache
        answered = int(cache.lengths[0]) - len(question.ids)
        # Of a prompt in one piece nobody can take a part, and one that was not read yet has nothing new.
        if len(asked.keys) > 1 and answered >= 0:
            kept = pieces_of(model, question, sequence.answer[:answered])
            tokens = len(question.ids) + answered
            model.cache.keep_sequence(kept, tokens * cache.bytes_per_token, lambda: cache.first(tokens))


def _begun(model: OnnxModel, question: Question, asked: Pieces, limit: int) -> RunningSequence:
    prefix = model.cache.longest_prefix(asked)
    start = prefix.tokens if prefix else 0
    prompt = model.prompt(question, model.features(question, start), start)
    cache = model.sessions.new_cache(len(question.ids) + limit)
    if prefix:
        cache.start_from(prefix.past, start)
    return RunningSequence(prompt, cache, start)


def pieces_of(model: OnnxModel, question: Question, answer: Sequence[int] = ()) -> Pieces:
    """The key of a picture's tokens is the digest: which of them it is follows from the tokens before it."""
    counted = zip(question.digests, question.pictures, strict=True)
    digests = (digest for own, picture in counted for digest in repeat(own, picture.tokens))
    keys: list[Hashable] = [next(digests) if token == model.facts.image_token else token for token in question.ids]
    kinds = token_kinds(model.facts, question.ids)
    in_run = None if kinds is None else [*kinds.astype(bool).tolist(), *repeat(False, len(answer))]
    return Pieces.of([*keys, *answer], in_run)
