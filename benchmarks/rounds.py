"""Contenders side by side: what is timed, how their rounds are interleaved, and what a round is.

Knows nothing of engines, tables and goals.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Call = Callable[[], Any]
Prepare = Callable[[Floats, int], Call]
"""Inputs (rows, columns) and a number of threads give the call that is timed."""


@dataclass(frozen=True)
class Contender:
    """An engine with a stack of weights of its own, larger than the caches.

    layer_bytes: what one layer's weights take in the engine's memory. layout: how they lie there, if that has a name.
    chunks: the stack in parts that can be run alone, each of `layers_per_chunk` layers.
    """

    name: str
    layer_bytes: int
    layers_per_chunk: int
    chunks: Sequence[Prepare]
    layout: str = ""


@dataclass(frozen=True)
class Setting:
    """rows: of the input. whole_stack: a round runs every chunk; otherwise the next one, as prefill is slow enough.

    One thread is timed by the CPU time of the process, which a busy machine does not stretch; more by the wall clock.
    """

    rows: int
    threads: int
    rounds: int
    whole_stack: bool = True

    @property
    def name(self) -> str:
        rows = f"{self.rows} row{'s' if self.rows > 1 else ''}"
        return rows if self.threads == 1 else f"{rows}, {self.threads} threads"


def seconds_per_layer(
    contenders: Sequence[Contender], setting: Setting, columns: int, rng: np.random.Generator
) -> Mapping[str, float]:
    """Median of each contender, by name. In every round each of them has its turn."""
    clock = time.process_time if setting.threads == 1 else time.perf_counter
    x = rng.standard_normal((setting.rows, columns), np.float32)
    calls = {each.name: [prepare(x, setting.threads) for prepare in each.chunks] for each in contenders}
    turns = {name: cycle(chunks) for name, chunks in calls.items()}
    samples: dict[str, list[float]] = {each.name: [] for each in contenders}
    for number in range(setting.rounds + 1):
        for each in contenders:
            todo = calls[each.name] if setting.whole_stack else [next(turns[each.name])]
            start = clock()
            for call in todo:
                call()
            seconds = clock() - start
            if number > 0:  # the first round warms up
                samples[each.name].append(seconds / (len(todo) * each.layers_per_chunk))
    return {name: statistics.median(values) for name, values in samples.items()}
