"""How much of the machine other programs take while a server is measured: what they take, it lacks."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from . import tree

_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE, _COUNTED = (3, 4), 8  # of the numbers in /proc/stat: idle and waiting for a disk; those behind are in others
_USED = slice(11, 15)  # in /proc/PID/stat, behind the name: its own time and that of children that ended


@dataclass(frozen=True)
class Moment:
    """Seconds, of the clock and of all processors: taken by anybody, and by this process and what it has started."""

    clock: float
    taken: float
    ours: float

    def share_of_others(self, later: "Moment") -> float:
        """0 to 1, of all processors."""
        others = later.taken - self.taken - (later.ours - self.ours)
        return max(others, 0.0) / ((later.clock - self.clock) * (os.cpu_count() or 1))


def moment() -> Moment:
    numbers = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    taken = sum(number for place, number in enumerate(numbers[:_COUNTED]) if place not in _IDLE)
    ours = sum(_used(process) for process in tree(os.getpid()))
    return Moment(time.perf_counter(), taken / _TICKS, ours / _TICKS)


def _used(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # it ended; its time is its parent's now
        return 0
    return sum(map(int, status.rpartition(")")[2].split()[_USED]))
