"""An artifact beside another form of the same model: how much smaller it is, and how much faster on this machine.

Both answer the same questions in this process, taking turns, so that what else the machine does slows both.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from .artifact import Artifact
from .progress import Progress
from .samples import Sample

if TYPE_CHECKING:
    from .serve.runtime import LoadedModel

QUESTIONS = 64


@dataclass(frozen=True)
class Form:
    """One of the two, in medians. first_token_ms: with picture and prompt. token_ms: every token behind the first."""

    weights: str
    bytes: int
    first_token_ms: float
    token_ms: float | None


@dataclass(frozen=True)
class Comparison:
    """artifact: what is shipped. other: what it is compared with. questions: asked of each, one after the other."""

    artifact: Form
    other: Form
    questions: int

    def rows(self) -> list[tuple[str, str, str, str]]:
        """What is compared, the artifact's figure, the other's, and the gain in words."""
        ours, other = self.artifact, self.other
        smaller = f"{ours.bytes / other.bytes:.2f} times the size"
        rows = [("size", f"{ours.bytes / 1e6:.2f} MB", f"{other.bytes / 1e6:.2f} MB", smaller)]
        rows.append(_speed("first token", ours.first_token_ms, other.first_token_ms))
        if ours.token_ms and other.token_ms:
            rows.append(_speed("every later token", ours.token_ms, other.token_ms))
        return rows


def compare(
    artifact: Artifact, other: Artifact, samples: Sequence[Sample], threads: int, progress: Progress
) -> Comparison:
    """Ask both ONNX artifacts the first samples. threads: of onnxruntime; 0 takes one per core."""
    from .serve.runtime import LoadedModel

    samples = samples[:QUESTIONS]
    models = [LoadedModel(each, threads) for each in (artifact, other)]
    first: list[list[float]] = [[], []]
    behind: list[list[float]] = [[], []]
    for model in models:
        _token_times(model, samples[0])  # not counted: whatever is done once
    for sample in progress.track(samples, "measuring beside another form", total=len(samples)):
        for i, model in enumerate(models):
            start, *rest = _token_times(model, sample)
            first[i].append(start)
            behind[i] += rest
    forms = [
        Form(str(each.manifest.verification["weights"]), each.bytes, median(first[i]), median(behind[i] or [0]) or None)
        for i, each in enumerate((artifact, other))
    ]
    return Comparison(forms[0], forms[1], len(samples))


def _speed(what: str, ours_ms: float, other_ms: float) -> tuple[str, str, str, str]:
    return what, f"{ours_ms:.3g} ms", f"{other_ms:.3g} ms", f"{other_ms / ours_ms:.2f} times as fast"


def _token_times(model: "LoadedModel", sample: Sample) -> list[float]:
    """Milliseconds until each token of the answer, from the one before it, or from the question."""
    times, last = [], time.perf_counter()
    for _ in model.stream(sample.question, sample.images):
        now = time.perf_counter()
        times.append(1000 * (now - last))
        last = now
    return times
