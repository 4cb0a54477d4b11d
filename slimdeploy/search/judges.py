"""Which judge a search asks: the whole model in memory or streamed, with SparseGPT's weights or with masks alone."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from ..prune import RankedWeights, SolvedWeights, dense_curvatures, solved_bytes
from ..samples import Sample
from .fitness import Judge, ModelJudge, PrunedModel
from .out_of_core import StreamedJudge
from .task import Task

JudgeOn = Callable[[Iterable[Sequence[Sample]]], Judge]
"""A judge on these parts of a set of samples. Those that one function makes share what they hold of the model."""


def judges(task: Task) -> JudgeOn:
    model, settings, group = task.model, task.config.prune, task.space.levels[-1].group
    solves = settings.criterion == "sparsegpt"
    if settings.propagate == "pruned" and settings.is_blockwise:
        task.progress.note("The search judged what dense inputs ask for; prune.propagate ships what pruned ones do.")
    if solves and (reason := _masks_alone(task)):
        task.progress.note(
            f"The search judged SparseGPT's masks alone, without the weights that make up for others: {reason}."
        )
        solves = False
    if model.streamed:
        return partial(StreamedJudge, model, settings, task.stats, group)
    if not solves:
        return partial(ModelJudge, PrunedModel(model, RankedWeights(model, settings, task.stats, group)))
    return partial(ModelJudge, PrunedModel(model, _solved(task)))


def _masks_alone(task: Task) -> str:
    """Why policies cannot be judged by the weights that SparseGPT makes for them; nothing where they can."""
    if task.model.streamed:
        return "the model stays on disk"
    needed, limit = solved_bytes(task.model, len(task.space.levels)) / 1e9, task.config.search.solved_gb
    if needed > limit:
        return f"all levels may take {needed:.1f} GB, and search.solved_gb = {limit:g}"
    return ""


def _solved(task: Task) -> SolvedWeights:
    began = time.perf_counter()
    calibration, batch_size = task.samples["calibration"], task.config.data.batch_size
    curvatures = dense_curvatures(task.model, calibration, batch_size, task.progress)
    task.ledger.add("second moments", 0, max(task.stats.tokens.values()), time.perf_counter() - began)
    return SolvedWeights(task.model, task.config.prune, curvatures)
