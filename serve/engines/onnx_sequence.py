"""A sequence in the decoder: it goes on from what earlier ones left, and leaves what it computed to later ones."""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat

from ..engine import GenerationRequest, RequestError, Usage
from ..grammar import Constraint
from ..positions import token_kinds
from .answer import Answer
from .onnx_model import OnnxModel, Question, Turn
from .onnx_sessions import Past, Tokens
from .prefix_cache import Pieces


@dataclass(eq=False)
class RunningSequence:
    """What is read and given up again is not held on to.

    tokens: of the prompt, those behind `past`; None once they are read. next_position: of the token behind the prompt.
    room: tokens that it may come to. length: those that are computed.
    """

    question: Question
    asked: Pieces
    tokens: Tokens | None
    next_position: int
    past: Past | None
    answer: Answer
    room: int
    length: int

    @property
    def unread(self) -> int:
        """Tokens of the prompt."""
        return max(len(self.question.ids) - self.length, 0)

    def piece(self, most: int) -> Tokens:
        """The next tokens of the prompt: at most so many, unless they see each other both ways and cannot be parted."""
        assert self.tokens is not None
        ends = self.asked.ends
        fitting = ends[max(bisect_right(ends, self.length + most) - 1, 0)]
        end = fitting if fitting > self.length else ends[bisect_right(ends, self.length)]
        new = len(self.question.ids) - self.tokens.count
        return self.tokens.between(self.length - new, end - new)

    @property
    def next_token(self) -> tuple[int, int]:
        """The answer's last token, which the decoder has not seen, and its position."""
        made = len(self.answer.tokens)
        return self.answer.tokens[-1], self.next_position + made - 1


def prepared(
    model: OnnxModel, request: GenerationRequest, constraint: Constraint | None = None, turn: Turn = nullcontext
) -> RunningSequence:
    """A request as the decoder takes it: its pictures are encoded. Raises RequestError for one that it cannot.

    constraint: what its grammar became. turn: held while a picture is encoded.
    """
    unknown = [token for token in request.sampling.logit_bias if not 0 <= token < model.sessions.vocabulary]
    if unknown:
        raise RequestError(
            f"'logit_bias' names token {unknown[0]}, and the model has {model.sessions.vocabulary}", param="logit_bias"
        )
    question = model.read(request.prompt)
    asked = pieces_of(model, question)
    prefix = model.cache.longest_prefix(asked)
    start = prefix.tokens if prefix else 0
    prompt = model.prompt(question, model.features(question, start, turn), start)
    limit = min(request.sampling.max_tokens, model.facts.context - len(question.ids))
    # Tokens that stand for a picture are not the prompt's words.
    words = (token for token in question.ids if token != model.facts.image_token)
    usage = Usage(len(question.ids), cached_tokens=start)
    answer = Answer(request.sampling, model.text, words, model.facts.end_tokens, limit, usage, constraint)
    room = len(question.ids) + limit
    past = prefix.past if prefix else None
    return RunningSequence(question.seen(), asked, prompt.tokens, prompt.next_position, past, answer, room, start)


def keep(model: OnnxModel, sequence: RunningSequence, bytes_per_token: int, copy: Callable[[], Past]) -> None:
    """What was computed of it, for later ones, however it ended. copy: makes it."""
    answered = sequence.length - len(sequence.question.ids)
    # Of a prompt in one piece nobody can take a part, and one that was not read yet has nothing new.
    if len(sequence.asked.keys) > 1 and answered >= 0:
        kept = pieces_of(model, sequence.question, sequence.answer.tokens[:answered])
        model.cache.keep_sequence(kept, sequence.length * bytes_per_token, copy)


def pieces_of(model: OnnxModel, question: Question, answer: Sequence[int] = ()) -> Pieces:
    """The key of a picture's tokens is the digest: which of them it is follows from the tokens before it."""
    counted = zip(question.digests, question.pictures, strict=True)
    digests = (digest for own, picture in counted for digest in repeat(own, picture.tokens))
    keys: list[Hashable] = [next(digests) if token == model.facts.image_token else token for token in question.ids]
    kinds = token_kinds(model.facts, question.ids)
    in_run = None if kinds is None else [*kinds.astype(bool).tolist(), *repeat(False, len(answer))]
    return Pieces.of([*keys, *answer], in_run)
