"""The demo model, pruned and restored, in every form of an ONNX export: what it answers, takes and costs.

Every export is verified while it is made. Accuracy is that of the engine on the first questions of the test split.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

from onnx_footprint import footprint
from results import Row, markdown_table
from rich.table import Table

from slimdeploy.artifact import Artifact, open_artifact
from slimdeploy.config import OnnxConfig, OnnxWeights
from slimdeploy.config_file import load_config
from slimdeploy.inspection import engine_answers
from slimdeploy.pipeline import Run, opened_run
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample
from slimdeploy.scoring import score
from slimdeploy.serve.engines.onnx_sessions import OnnxSessions
from slimdeploy.serve.runtime import LoadedModel

CONFIG = Path(__file__).parent.parent / "deploy.toml"
QUESTIONS = 500
FORMS = tuple(form for form in get_args(OnnxWeights) if form != "packed")  # it stores what a budget in bytes asks for
_OVERHEAD_MS = 0.3


def demo(folder: Path, progress: Progress) -> tuple[Table, list[Row]]:
    """folder: for the exports. The run in dist/demo is made first where there is none."""
    table = markdown_table(
        "weights",
        f"accuracy of {QUESTIONS}",
        "files, MB",
        "peak memory, MB",
        "load, s",
        "first token, ms",
        "ms a token",
    )
    rows: list[Row] = []
    with opened_run(load_config(CONFIG), progress) as run:
        samples = run.samples["test"][:QUESTIONS]
        for form in FORMS:
            artifact = _exported(run, form, folder / form)
            accuracy = score(samples, engine_answers(artifact, samples, run.config, progress)).value
            first, later, overhead = times(artifact, samples[:100])
            taken = footprint(artifact.path, tokens=32, threads=1)
            figures = (taken.file_bytes / 1e6, taken.peak_bytes / 1e6, taken.load_s, 1000 * first, 1000 * later)
            table.add_row(form, f"{100 * accuracy:.1f}%", *(f"{figure:.2f}" for figure in figures))
            if form == run.config.export.onnx.weights:
                name = f"a token outside the sessions, demo, {form}"
                rows.append(Row(name, 1000 * overhead, "ms", _OVERHEAD_MS, at_most=True))
    return table, rows


def _exported(run: Run, form: OnnxWeights, folder: Path) -> Artifact:
    export = run.config.export.model_copy(update={"onnx": OnnxConfig(weights=form)})
    run.export_to(folder, export)
    return open_artifact(folder)


def times(artifact: Artifact, samples: list[Sample]) -> tuple[float, float, float]:
    """Median seconds to the first token, of every later one, and of its share outside the sessions."""
    model = LoadedModel(artifact, threads=1)
    inside: list[float] = []
    first, later, outside = [], [], []
    with ExitStack() as stack:
        for name in ("decode", "embed"):
            timed = _timed(getattr(OnnxSessions, name), inside)
            stack.enter_context(patch.object(OnnxSessions, name, timed))
        for sample in samples:
            before = time.perf_counter()
            for number, _ in enumerate(model.stream(sample.question, sample.images)):
                now = time.perf_counter()
                (later if number else first).append(now - before)
                if number:
                    outside.append(now - before - sum(inside))
                inside.clear()
                before = time.perf_counter()
    return statistics.median(first), statistics.median(later), statistics.median(outside)


def _timed(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*arguments, **keywords)
        finally:
            spent.append(time.perf_counter() - start)

    return timed
