"""Text to tokens and tokens to text, through `tokenizers` alone.

Knows nothing of conversations; `slimdeploy.serve.chat_template` makes the prompt that is encoded here.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders

from slimdeploy.errors import ArtifactError

from .engine import RequestError
from .model_files import read_json_if_there

# Unicode keeps these two for a program's own use: no text may hold them.
_QUOTE, _UNQUOTE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"([{_QUOTE}{_UNQUOTE}])")
_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_WORD = "a"
_LONG = 8
"""Characters for each token that a prompt may have: of more it is found out first whether it has too many."""
Span = tuple[int, int]


class Text:
    """A model's tokenizer."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "tokenizer.json"
        self._tokenizer = _load(self._file)
        self._literal = _load(self._file)
        self._literal.encode_special_tokens = True
        self.special_tokens = special_tokens(folder)
        added = self._tokenizer.get_added_tokens_decoder()
        self._control_ids = {token for token, how in added.items() if how.special}
        self._decoder = self._tokenizer.decoder or decoders.Fuse()
        self._is_byte_level = self._decoder.decode(["Ġ"]) == " "
        controls = {added[token].content for token in self._control_ids}
        controls |= set(self.special_tokens.values())
        controls.discard("")
        longest_first = sorted(controls, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._controls = controls
        self._beginnings = tuple({control[:n] for control in controls for n in _prefix_lengths(control)})
        self._ends = tuple({control[-n:] for control in controls for n in _prefix_lengths(control)})

    @cached_property
    def vocabulary(self) -> int:
        """Ids are below it."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def loses_first_space(self) -> bool:
        """Whether an answer's first token gives its text less the space that it has inside of an answer."""
        for token in range(self.vocabulary):
            _, data = self.token(token)
            if data and data[0] == 0x20 and data[1:].isalpha():
                return not self.decode([token]).startswith(" ")
        return False

    def quote(self, text: str) -> str:
        """The text with control tokens such as `<image>` marked, so that `encode` reads them as plain characters.

        Without this whoever writes a message could end a turn, or claim a picture that is not there. Marked as well is
        an edge that is a piece of a control token: the template may put the rest of it next to the text.
        """
        if _QUOTE in text or _UNQUOTE in text:
            raise RequestError("text holds U+FDD0 or U+FDD1, which are no characters", param="messages")
        pieces, position = [], 0
        for start, end in _merged([*(match.span() for match in self._control.finditer(text)), *self._edges(text)]):
            pieces += [text[position:start], _QUOTE, text[start:end], _UNQUOTE]
            position = end
        return "".join([*pieces, text[position:]])

    def _edges(self, text: str) -> Iterator[Span]:
        """Where the text, which a template may strip, is a piece of a control token, or begins or ends with one."""
        inner = text.strip() or text
        start = text.find(inner)
        end = start + len(inner)
        if inner and any(inner in control for control in self._controls):
            yield start, end
            return
        if inner.startswith(self._ends):
            yield start, start + max(len(piece) for piece in self._ends if inner.startswith(piece))
        if inner.endswith(self._beginnings):
            yield end - max(len(piece) for piece in self._beginnings if inner.endswith(piece)), end

    def control_token(self, token: int) -> str:
        """How the control token of that id is written. Raises ArtifactError where it is none: a text could forge it."""
        added = self._tokenizer.get_added_tokens_decoder().get(token)
        if added is None or not added.special:
            raise ArtifactError(
                f"{self._file} has no special token with the id {token}, which stands for a picture in config.json; "
                "export the artifact again with the tokenizer that the model was trained with"
            )
        return str(added.content)

    def split(self, prompt: str, control: str) -> list[str]:
        """The rendered prompt without the places where the template, and not a quoted text, wrote a control token."""
        pieces, is_quoted = [""], False
        for piece in _MARK.split(prompt):
            is_quoted = piece == _QUOTE or (is_quoted and piece != _UNQUOTE)
            first, *others = [piece] if is_quoted else piece.split(control)
            pieces[-1] += first
            pieces += others
        return pieces

    def encode(self, prompt: str, has_special_tokens: bool = False) -> list[int]:
        """Ids of a rendered prompt. Special tokens are added as the tokenizer says, unless the prompt has them.

        has_special_tokens: it has, though it does not begin with one.
        """
        bos = self.special_tokens.get("bos_token")
        add_special_tokens = not (has_special_tokens or (bos and prompt.startswith(bos)))
        ids: list[int] = []
        for number, piece in enumerate(self._literal_at_odd_places(prompt)):
            tokenizer = self._literal if number % 2 else self._tokenizer
            ids += tokenizer.encode(piece, add_special_tokens=add_special_tokens and number == 0).ids
        return ids

    def is_hopeless(self, texts: Sequence[str], most: int) -> bool:
        """Whether texts have more than twice as many tokens as they may have, found out piece by piece.

        The tokenizer takes 250 bytes for a token: a body of 32 MB, encoded at once, would take gigabytes.
        """
        piece = _LONG * most
        if sum(map(len, texts)) <= piece:
            return False
        tokens = 0
        for text in texts:
            for start in range(0, len(text), piece):
                tokens += len(self._literal.encode(text[start : start + piece], add_special_tokens=False).ids)
                if tokens > 2 * most:
                    return True
        return False

    def _literal_at_odd_places(self, prompt: str) -> list[str]:
        """The prompt without marks, cut at the control tokens of which any character is quoted."""
        plain, quoted = _unmarked(prompt)
        pieces, position = [], 0
        for match in self._control.finditer(plain):
            while quoted and quoted[0][1] <= match.start():
                quoted.popleft()
            if quoted and quoted[0][0] < match.end():
                pieces += [plain[position : match.start()], match.group()]
                position = match.end()
        return [*pieces, plain[position:]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def token(self, token: int) -> tuple[str, bytes | None]:
        """One token's own text, and its bytes inside an answer: a control token has none, nor an id without a token."""
        written = self._tokenizer.id_to_token(token)
        if written is None or token in self._control_ids:
            return written or "", None
        data = self._bytes(written)
        return data.decode(errors="replace"), data

    def _bytes(self, written: str) -> bytes:
        """Of a token as the vocabulary writes it."""
        if self._is_byte_level and _BYTE_OF.keys() >= set(written):
            return bytes(_BYTE_OF[character] for character in written)
        # After a word, because an answer's first token may lose its space.
        shown: str = self._decoder.decode([_WORD, written]).removeprefix(_WORD)
        byte = _BYTE_TOKEN.fullmatch(written)
        return bytes.fromhex(byte[1]) if byte and shown == _REPLACEMENT else shown.encode()


class AnswerStream:
    """Turns an answer's tokens into text that is certain, piece by piece.

    Never gives half of a UTF-8 character, nor a part of a stop string. All pieces together are the decoded answer up to
    the first stop string; the bytes of a character that never became whole are left out. stop: may be set at any time,
    and is found in what is not given yet.
    """

    def __init__(self, text: Text, stop: Sequence[str]) -> None:
        self.stop = stop
        self._text = text
        self._ids: list[int] = []
        self._read = 0  # ids[:_read] already gave all of their text
        self._held = ""  # certain, but perhaps the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token made certain; sets `stopped` when it completes a stop string."""
        self._ids.append(token)
        before = self._text.decode(self._ids[: self._read])
        whole = self._text.decode(self._ids)
        if len(whole) <= len(before) or whole.endswith(_REPLACEMENT):
            return ""
        # Older tokens matter no more; those that gave this text do, because a word's first token may lose its space.
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return self._release(whole[len(before) :])

    def flush(self) -> str:
        """What was held back, once no token follows."""
        before = self._text.decode(self._ids[: self._read])
        rest = self._text.decode(self._ids)[len(before) :].rstrip(_REPLACEMENT)
        released = self._release(rest)
        held, self._held = self._held, ""
        return released if self.stopped else released + held

    def _release(self, certain: str) -> str:
        self._held += certain
        found = [position for stop in self.stop if (position := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            end = min(found)
        else:
            end = len(self._held) - self._undecided()
        released, self._held = self._held[:end], self._held[end:]
        return released

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        held = self._held
        lengths = (
            n for stop in self.stop for n in range(1, min(len(stop), len(held) + 1)) if stop.startswith(held[-n:])
        )
        return max(lengths, default=0)


def _byte_alphabet() -> dict[str, int]:
    """How byte-level tokens write bytes, since GPT-2: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _prefix_lengths(stop: str) -> Iterator[int]:
    yield from range(1, len(stop))


def _merged(spans: Iterable[Span]) -> list[Span]:
    """In order, those that overlap as one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _unmarked(prompt: str) -> tuple[str, deque[Span]]:
    """The prompt without marks, and where in it the quoted texts are, in order."""
    spans: deque[Span] = deque()
    pieces, length, is_quoted = [], 0, False
    for piece in _MARK.split(prompt):
        if piece in (_QUOTE, _UNQUOTE):
            is_quoted = piece == _QUOTE
            continue
        if is_quoted:
            spans.append((length, length + len(piece)))
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces), spans


def special_tokens(folder: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` and their like, by the names under which chat templates ask for them."""
    values = read_json_if_there(folder / "special_tokens_map.json") | read_json_if_there(
        folder / "tokenizer_config.json"
    )
    extra = values.get("extra_special_tokens")
    values |= extra if isinstance(extra, dict) else {}
    tokens = {}
    for name, value in values.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


def _load(file: Path) -> Tokenizer:
    if not file.is_file():
        raise ArtifactError(f"{file} is missing; export the artifact again")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for whatever it cannot parse
        raise ArtifactError(f"{file} is no tokenizer that this server can read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
