"""What an answer must be: a grammar becomes a constraint, which says before each token of an answer what may follow.

llguidance does the work. It is quick where grammars are simple (5 to 400 µs a token of 32,000) and bounded where they
are not, but for two cases: compiling one may take for ever, or overflow the stack. So each is compiled in a program of
its own first (`grammar_trial`), which is ended when its time is over, and here only if that went well.
"""

import json
import re
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
from numpy.typing import NDArray

from .engine import Grammar, RequestError
from .grammar_verdicts import Verdicts
from .penalties import Logits, without
from .text import Text

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_TRIAL = Path(__file__).parent / "grammar_trial.py"
_MOST_CHARACTERS = 200_000
_LIMITS: dict[str, Any] = {
    # Of the work on one token's mask, which other answers wait for: at most about 5 ms.
    "step_lexer_fuel": 100_000,
    # 1 kB each, of an answer's own.
    "max_lexer_states": 50_000,
    # Or compiling would depend on the vocabulary, which the trial does not have.
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}
# The model writes tokens of its own choice, and not those into which the library would cut what is certain.
_HEAD = '%llguidance {"no_forcing": true}\n'
# A space, or a new line with its indentation: a small model that may write any blanks writes nothing else.
_BLANKS = r" |\n {0,40}"
_IN_REGEX = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")


class Grammars:
    """Those of one model. ends: tokens that end its answers. timeout_s: longest time that compiling one may take.

    Several threads may check at the same time, but only one may ask for constraints.
    """

    def __init__(self, text: Text, ends: frozenset[int], timeout_s: float) -> None:
        self._text = text
        self._ends = ends
        self._verdicts = Verdicts(lambda written: _fault(written, timeout_s))

    def is_tried(self, grammar: Grammar) -> bool:
        """Whether `check` knows at once."""
        with suppress(ValueError):
            return self._verdicts.known(self._written(grammar)) is not None
        return True

    def check(self, grammar: Grammar) -> None:
        """Raises RequestError for a grammar that cannot be compiled, in time or at all; after timeout_s at most."""
        try:
            fault = self._verdicts.of(self._written(grammar))
        except ValueError as error:
            fault = str(error)
        if fault:
            raise RequestError(f"'{grammar.param}': {fault}", param=grammar.param)

    def constraint(self, grammar: Grammar) -> "Constraint":
        """For one answer. Raises RequestError as `check` does."""
        from llguidance import LLMatcher, LLParserLimits

        self.check(grammar)
        limits = LLParserLimits(**_LIMITS)
        matcher = LLMatcher(self._tokenizer, self._written(grammar), log_level=0, limits=limits)
        return Constraint(matcher, self._text.vocabulary, self._ends, grammar.param)

    def prepare(self) -> None:
        """What the first constraint would do otherwise, and all threads of the process wait for."""
        _ = self._tokenizer

    @cached_property
    def _tokenizer(self) -> "LLTokenizer":
        """Takes 0.1 s and 14 MB for 32,000 tokens, 2 s and 112 MB for 256,000.

        The library lets no other thread run meanwhile, for 0.05 s and 0.6 s, however it is asked.
        """
        from llguidance import LLTokenizer, TokenizerWrapper

        vocabulary = _Vocabulary(self._text)
        # It copies them, and keeps hold of what it is given.
        made = LLTokenizer(TokenizerWrapper(vocabulary))
        vocabulary.tokens.clear()
        return made

    def _written(self, grammar: Grammar) -> str:
        """In llguidance's own language. Raises ValueError for what is larger than grammars are.

        Where a text loses the space that it begins with, the answer's first token may bring one, as words do that such
        a model begins with; and what must begin with a space has two.
        """
        match grammar.kind:
            case "json_object":
                return self._json({"type": "object"})
            case "json_schema":
                return self._json(json.loads(_of_usual_size(grammar.source)))
            case "regex":
                return self._regex(_of_usual_size(grammar.source))
            case "choice":
                choices = json.loads(_of_usual_size(grammar.source))
                return self._regex("|".join(_IN_REGEX.sub(r"\\\g<0>", choice) for choice in choices))
            case _:
                assert_never(grammar.kind)

    def _json(self, schema: dict[str, Any]) -> str:
        # Options of the library that stand in a schema would make it lenient, among other things.
        schema = schema | {"x-guidance": {"whitespace_pattern": _BLANKS}}
        start = 'start: SPACE? answer\nSPACE: " "\n' if self._text.loses_first_space else "start: answer\n"
        return f"{_HEAD}{start}answer: %json {json.dumps(schema, allow_nan=False)}\n"

    def _regex(self, pattern: str) -> str:
        from llguidance import regex_to_lark

        if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            raise ValueError("it ends with a backslash that stands before nothing")
        regex = f"/{regex_to_lark(pattern, '')}/"
        answer = f'(" " {regex}) | ({regex} & /([^ ].*)?/s)' if self._text.loses_first_space else regex
        return f"{_HEAD}start: ANSWER\nANSWER: {answer}\n"


class Constraint:
    """Of one answer. is_complete: it is what it must be, and nothing can follow."""

    def __init__(self, matcher: "LLMatcher", vocabulary: int, ends: frozenset[int], param: str) -> None:
        self.is_complete = False
        self._matcher = matcher
        self._ends = ends
        self._param = param
        self._vocabulary = vocabulary
        # One more than the vocabulary has: the library's own end.
        self._bits = np.zeros((1, vocabulary // 32 + 1), np.int32)

    def __call__(self, logits: Logits, barred: Collection[int] = ()) -> Logits:
        """Logits, (vocabulary,), with those of tokens that may not come next at minus infinity.

        The model's ends may come where the answer may end. barred: tokens that come only where no other may.
        """
        masked = self._of_grammar(logits)
        may_end = self._matcher.is_accepting()
        for end in self._ends:
            if end < len(logits):
                masked[end] = logits[end] if may_end else -np.inf
        preferred = without(masked, barred)
        found = masked if preferred.max() == -np.inf else preferred
        if found.max() == -np.inf:
            raise self._fault("the model has no token with which its answer could go on")
        return found

    def count(self, token: int) -> None:
        """The answer has this token, too."""
        if token in self._ends:
            self.is_complete = True
            return
        if not self._matcher.consume_token(token):
            raise self._fault(_reason(self._matcher.get_error()))
        self.is_complete = self._matcher.is_stopped()

    def _of_grammar(self, logits: Logits) -> Logits:
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():
            raise self._fault(_reason(self._matcher.get_error()))
        allowed: NDArray[np.bool_] = np.unpackbits(self._bits.view(np.uint8), bitorder="little").view(np.bool_)
        # There are models with logits beyond their tokenizer's vocabulary, which stand for nothing.
        known = min(len(logits), self._vocabulary)
        masked = np.full_like(logits, -np.inf)
        np.copyto(masked[:known], logits[:known], where=allowed[:known])
        return masked

    def _fault(self, reason: str) -> RequestError:
        return RequestError(f"'{self._param}': {reason}", param=self._param)


class _Vocabulary:
    """As llguidance wants it: bytes by id. It makes up an end of its own; answers end with the model's."""

    eos_token_id = None
    bos_token_id = None

    def __init__(self, text: Text) -> None:
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        for token in range(text.vocabulary):
            written, data = text.token(token)
            if data is None:
                self.special_token_ids.append(token)
            self.tokens.append(written.encode() if data is None else data)

    def __call__(self, text: object) -> list[int]:
        raise NotImplementedError("nothing is forced, so nothing is cut into tokens")


def _of_usual_size(source: str) -> str:
    if len(source) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(source)} characters; at most {_MOST_CHARACTERS} are taken")
    return source


def _fault(written: str, timeout_s: float) -> str:
    """What is wrong with a grammar, found by compiling it elsewhere; empty where nothing is."""
    task = json.dumps({"grammar": written, "limits": _LIMITS, "seconds": timeout_s})
    try:
        trial = subprocess.run(
            [sys.executable, "-P", str(_TRIAL)],  # or our own modules would stand before the library's
            input=task,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            process_group=0,  # Ctrl-C is for the server, which lets requests come to their end
        )
    except subprocess.TimeoutExpired:
        return f"it takes longer than {timeout_s:g} s to compile; make it simpler"
    if trial.returncode < 0:  # by a signal: no stack is left, or no memory
        return "it is nested too deeply, or too large, to be compiled; make it simpler"
    if trial.returncode > 0:
        raise RuntimeError(f"{_TRIAL} failed: {trial.stderr.strip().splitlines()[-1:]}")
    return _reason(trial.stdout) if trial.stdout else ""


def _reason(said: str) -> str:
    """What the library says, without what a client neither wrote nor may see."""
    for sign, reason in _KNOWN_REASONS.items():
        if sign in said:
            return reason
    in_regex = re.search(r"^error: (.+)$", said, re.MULTILINE)
    first = in_regex[1] if in_regex else said.splitlines()[0]
    for words in _OF_THE_LIBRARY:
        first = re.sub(words, "", first)
    return first if len(first) <= 200 else first[:200] + "…"


_KNOWN_REASONS = {
    "panic": "it cannot be compiled",
    "NoExtension": "no text can be like this",
    "too many": "it is too complex; make it simpler",
    "ParserTooComplex": "it is too complex; make it simpler",
    "LexerTooComplex": "it is too complex; make it simpler",
}
_OF_THE_LIBRARY = (
    r"^at \d+\(\d+\): ",
    r'^failed to (compile JSON schema|parse "%json"): ',
    r'^invalid regex ".*" \(in regex\): ',
    r" at line \d+ column \d+$",
    r"\. Enable '.*$",
    r" and retrieving it failed.*$",
)
