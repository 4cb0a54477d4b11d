"""What servers are asked for when they are compared: questions about pictures, none of which comes twice, and the
figures of their answers.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from slimdeploy.config import ValidateConfig
from slimdeploy.measurements import Run
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample
from slimdeploy.serve.bench import measure

_SQUARES = 28
_TIMEOUT_S = 600.0
_FIELDS = {"ignore_eos": True}


class LoadError(Exception):
    """Answers that are not what was asked for, so that their figures would mislead."""


def questions(side: int) -> Iterator[Sample]:
    """Each with a picture of its own that begins the prompt, so that nothing kept of an earlier one helps.

    side: in pixels.
    """
    rng = np.random.default_rng(0)
    number = 0
    while True:
        squares = Image.fromarray(rng.integers(0, 256, (_SQUARES, _SQUARES, 3), dtype=np.uint8))
        picture = io.BytesIO()
        squares.resize((side, side), Image.Resampling.NEAREST).save(picture, "PNG")
        yield Sample(str(number), f"What is there? ({number:05d})", (picture.getvalue(),))
        number += 1


@dataclass(frozen=True)
class Figures:
    """Medians over the requests of a wave. answer_s: from sending to the last token."""

    ttft_s: float
    tpot_ms: float
    answer_s: float
    tokens_per_second: float


def ask(url: str, samples: Iterator[Sample], streams: int, tokens: int) -> Figures:
    """A wave: the next `streams` samples at once, each over a new connection, for servers close those that idle.

    tokens: of every answer. Raises LoadError where a server does not give so many.
    """
    config = ValidateConfig(requests=streams, concurrency=streams, max_tokens=tokens, warmup=0, timeout_s=_TIMEOUT_S)
    taken = [next(samples) for _ in range(streams)]
    return figures_of(measure(url, taken, config, Progress.silent(), _FIELDS), tokens)


def figures_of(run: Run, tokens: int) -> Figures:
    """tokens: that each answer must have."""
    for request in run.requests:
        if request.error:
            raise LoadError(f"a request failed: {request.error}, {request.detail}")
        if request.tokens_out != tokens:
            raise LoadError(f"an answer has {request.tokens_out} tokens instead of {tokens}")
    medians = {metric: run.distribution(metric).percentile(50) for metric in ("ttft", "tpot", "e2e")}
    ttft, tpot, answer = (medians[metric] or float("nan") for metric in ("ttft", "tpot", "e2e"))
    return Figures(ttft / 1e3, tpot, answer / 1e3, run.throughput)
