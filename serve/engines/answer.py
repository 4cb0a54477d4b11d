"""One request's answer: what the decoder says of it, logits after logits, becomes tokens, text and chunks."""

from collections.abc import Iterable

import numpy as np

from ..engine import Chunk, FinishReason, Sampling, Usage
from ..logprobs import token_logprob
from ..penalties import Logits
from ..sampling import Sampler
from ..text import AnswerStream, Text


class Answer:
    """limit: tokens that it may have. prompt_ids: those that penalties count; ends: those that end it.

    tokens: what was chosen so far. usage: counts the token that ends the answer, too.
    """

    def __init__(
        self, sampling: Sampling, text: Text, prompt_ids: Iterable[int], ends: frozenset[int], limit: int, usage: Usage
    ) -> None:
        self.tokens: list[int] = []
        self._sampling = sampling
        self._text = text
        self._sampler = Sampler(sampling, prompt_ids)
        self._ends = frozenset(sampling.stop_tokens) | (frozenset() if sampling.ignore_eos else ends)
        self._limit = limit
        self._stream = AnswerStream(text, () if sampling.min_tokens else sampling.stop)
        self._usage = usage

    def take(self, logits: Logits) -> Chunk:
        """The next token from its logits, (vocabulary,): a chunk with no text while that is not certain.

        One with a finish reason is the last.
        """
        if len(self.tokens) < self._sampling.min_tokens:
            token = self._sampler(self._without_ends(logits))
        else:
            self._stream.stop = self._sampling.stop
            token = self._sampler(logits)
        self.tokens.append(token)
        ended = token in self._ends
        text = "" if ended else self._stream.push(token)
        count = len(self.tokens)
        finish: FinishReason | None = None
        if ended or self._stream.stopped:
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

    def _without_ends(self, logits: Logits) -> Logits:
        endless = logits.copy()
        endless[[end for end in self._ends if end < len(logits)]] = -np.inf
        return endless
