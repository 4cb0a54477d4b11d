"""How much of a prompt is read while the answers of others go on."""

LARGEST_PIECE = 512
"""Tokens of a piece where nobody waits: those who come meanwhile wait no longer than for that."""
LARGEST_BESIDE = 64
"""Tokens of a piece beside answers."""
_GROWTH, _SHRINKING = 1 / 16, 1 / 8
_FIRST = 8
_WEIGHT = 0.2
"""Of the newest step in running means; a usual one that took less counts at once."""
_STEPS_IN_A_ROW = 32
"""With a piece; the next has none, and shows how long a step usually takes by now."""


class Pace:
    """Finds the piece with which steps take just so long on average: a sixteenth more while they are in time, an eighth
    less while they are not. Knows steps and seconds, no model.

    Each prompt that is to be read has as much of the time as all answers together: with one, a step may take twice as
    long as usual. fewest: tokens of a piece, however long they take.
    """

    def __init__(self, fewest: int = 1) -> None:
        self._fewest = fewest
        self._size = float(max(fewest, _FIRST))
        self._usual: dict[int, float] = {}  # seconds of a step, by how many answers go on in it
        self._allowed = 2.0  # times as long as usual that a step may take with a piece in it
        self._slower = self._allowed  # running mean of what they take
        self._in_a_row = 0

    def piece(self, answers: int, prompts: int = 1) -> int:
        """Tokens of a prompt to read beside so many answers; 0 where a usual step of theirs is to be timed.

        prompts: that are to be read, one after the other.
        """
        if answers == 0:
            return LARGEST_PIECE
        self._allowed = 1.0 + prompts
        return int(self._size) if answers in self._usual and self._in_a_row < _STEPS_IN_A_ROW else 0

    def took(self, seconds: float, answers: int, piece: int) -> None:
        """A step is over. piece: tokens of a prompt that it read."""
        if answers == 0:
            return
        if piece == 0:
            before = self._usual.get(answers, seconds)
            # One that was held up must not count for long.
            self._usual[answers] = min(seconds, before + _WEIGHT * (seconds - before))
            self._in_a_row = 0
            return
        self._in_a_row += 1
        usual = self._usual.get(answers, seconds)
        self._slower += _WEIGHT * (seconds / usual - self._slower)
        if self._slower > self._allowed:
            self._size = max((1 - _SHRINKING) * min(self._size, piece), self._fewest)
        elif piece >= int(self._size):  # the end of a prompt says nothing of larger pieces
            self._size = min(self._size + max(_GROWTH * self._size, 1), LARGEST_BESIDE)
