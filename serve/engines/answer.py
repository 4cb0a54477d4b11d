"""One request's answer: what the decoder says of it, logits after logits, becomes tokens, text and chunks."""

from collections.abc import Collection, Iterable

from ..engine import Chunk, FinishReason, Sampling, Usage
from ..grammar import Constraint
from ..logprobs import token_logprob
from ..penalties import Logits, without
from ..sampling import Sampler
from ..text import AnswerStream, Text


class Answer:
    """limit: tokens that it may have. prompt_ids: those that penalties count; ends: those that end it.

    tokens: what was chosen so far. usage: counts the token that ends the answer, too. constraint: its own.
    """

    def __init__(
        self,
        sampling: Sampling,
        text: Text,
        prompt_ids: Iterable[int],
        ends: frozenset[int],
        limit: int,
        usage: Usage,
        constraint: Constraint | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self._sampling = sampling
        self._text = text
        self._sampler = Sampler(sampling, prompt_ids)
        self._constraint = constraint
        # Where a grammar says that nothing else can follow, the model's end is the end.
        passed_over = sampling.ignore_eos and constraint is None
        self._ends = frozenset(sampling.stop_tokens) | (frozenset() if passed_over else ends)
        self._unwanted = ends if sampling.ignore_eos and constraint else frozenset()
        self._limit = limit
        self._stream = AnswerStream(text, () if sampling.min_tokens else sampling.stop)
        self._usage = usage

    def take(self, logits: Logits) -> Chunk:
        """The next token from its logits, (vocabulary,): a chunk with no text while that is not certain.

        One with a finish reason is the last.
        """
        if len(self.tokens) >= self._sampling.min_tokens:
            self._stream.stop = self._sampling.stop
        token = self._sampler(self._allowed(logits))
        self.tokens.append(token)
        ended = token in self._ends
        text = "" if ended else self._stream.push(token)
        count = len(self.tokens)
        finish: FinishReason | None = None
        if ended or self._stream.stopped or self._is_complete(token):
            finish = "stop"
        elif count == self._limit:
            finish = "length"
        if finish and not self._stream.stopped:
            text += self._stream.flush()
            # The rest of the text may complete a stop string after all.
            finish = "stop" if self._stream.stopped else finish
        logprobs = None
        if self._sampling.logprobs is not None:
            logprobs = () if ended else (token_logprob(logits, token, self._sampling.logprobs, self._text),)
        usage = Usage(self._usage.prompt_tokens, count, self._usage.cached_tokens)
        return Chunk(text, usage, finish, logprobs)

    def _allowed(self, logits: Logits) -> Logits:
        barred: Collection[int] = self._ends if len(self.tokens) < self._sampling.min_tokens else self._unwanted
        if self._constraint is not None:
            return self._constraint(logits, barred)
        return without(logits, barred) if barred else logits

    def _is_complete(self, token: int) -> bool:
        """Whether the grammar lets nothing follow this token, which is new."""
        if self._constraint is None:
            return False
        self._constraint.count(token)
        return self._constraint.is_complete
