"""How much of a prompt is read while the answers of others go on."""

import math

LARGEST_PIECE = 768
"""Tokens of a piece: those who come meanwhile wait no longer than for that, and most questions about a picture fit."""
LARGEST_BESIDE = 128
"""Tokens of a piece beside answers: for each of them there are logits."""
_FIRST = 8
_WEIGHT = 0.2
"""Of the newest step in running means; a usual one that took less counts at once."""
_LEAST = 1e-6
"""Seconds that a piece takes, whatever the clock says."""
_STEPS_IN_A_ROW = 32
"""With a piece; the next has none, and shows how long a step usually takes by now."""


class Pace:
    """Finds the piece with which steps take just so long on average, from what tokens of pieces have added to steps.

    Knows steps and seconds, no model.

    Each prompt that is to be read has as much of the time as all answers together: with one, a step may take twice as
    long as usual. fewest: tokens of a piece, however long they take.
    """

    def __init__(self, fewest: int = 1) -> None:
        self._fewest = fewest
        self._usual: dict[int, float] = {}  # seconds of a step, by how many answers go on in it
        self._added: float | None = None  # running mean of seconds for each token of a piece
        self._asked = 0
        self._allowed = 0.0  # seconds that the piece may add
        self._in_a_row = 0

    def piece(self, answers: int, prompts: int = 1, unread: int = LARGEST_PIECE) -> int:
        """Tokens of a prompt to read beside so many answers; 0 where a usual step of theirs is to be timed.

        prompts: that are to be read, one after the other. unread: tokens of the first.
        """
        if answers == 0:  # in equal pieces: a small one at the end reads all weights for little
            return math.ceil(unread / math.ceil(unread / LARGEST_PIECE))
        if answers not in self._usual or self._in_a_row == _STEPS_IN_A_ROW:
            return 0
        self._allowed = prompts * self._usual[answers]
        fitting = _FIRST if self._added is None else self._allowed / self._added
        self._asked = int(min(max(fitting, self._fewest), LARGEST_BESIDE))
        return self._asked

    def pause(self, answers: int, prompts: int) -> float:
        """Seconds to wait after a step while a picture is encoded; steps take twice as long then anyway."""
        known = min(self._usual, key=lambda count: abs(count - answers), default=None)
        return 0.0 if known is None else max(prompts - 1, 0) * self._usual[known]

    def took(self, seconds: float, answers: int, piece: int) -> None:
        """A step is over. piece: tokens of a prompt that it read."""
        if answers == 0:
            return
        usual = self._usual.get(answers, seconds)
        if piece == 0:
            # One that was held up must not count for long.
            self._usual[answers] = min(seconds, usual + _WEIGHT * (seconds - usual))
            self._in_a_row = 0
            return
        self._in_a_row += 1
        added = max(seconds - usual, _LEAST)
        # The end of a prompt says nothing of larger pieces, unless it takes too long itself.
        if piece >= self._asked or added > self._allowed:
            before = added / piece if self._added is None else self._added
            self._added = before + _WEIGHT * (added / piece - before)
