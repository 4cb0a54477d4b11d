"""How much of a prompt is read while the answers of others go on."""

_SLOWER: float = 2.0
"""Times as long as usual that a step may take with a piece of a prompt in it."""
LARGEST_PIECE = 512
"""Tokens of a piece, also where nobody waits: those who come meanwhile wait no longer than for that."""
_FIRST = 8
_WEIGHT = 0.2
"""Of the newest step in the running mean of usual ones."""


class Pace:
    """Finds the piece with which a step takes just so long: one token more after a step in time, a fifth less after one
    that was not. Knows steps and seconds, no model."""

    def __init__(self) -> None:
        self._usual: dict[int, float] = {}  # seconds of a step, by how many answers go on in it
        self._size = float(_FIRST)

    def piece(self, answers: int) -> int:
        """Tokens of a prompt to read beside so many answers; 0 before a usual step of theirs was timed."""
        if answers == 0:
            return LARGEST_PIECE
        return int(self._size) if answers in self._usual else 0

    def took(self, seconds: float, answers: int, piece: int) -> None:
        """A step is over. piece: tokens of a prompt that it read."""
        if piece == 0:
            before = self._usual.get(answers, seconds)
            self._usual[answers] = before + _WEIGHT * (seconds - before)
        elif usual := self._usual.get(answers):
            in_time = seconds <= _SLOWER * usual
            self._size = min(self._size + 1, LARGEST_PIECE) if in_time else max(self._size * 0.8, 1)
