"""The whole path on the demo model, from nothing: how long it takes, how much accuracy it keeps, who agrees.

make bench-demo
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from results import Row, publish
from rich.console import Console

from slimdeploy.artifact import open_artifact
from slimdeploy.config import Config
from slimdeploy.config_file import load_config
from slimdeploy.inspection import engine_answers
from slimdeploy.kernels.operators import missing_operators
from slimdeploy.pipeline import Run, opened_run, run_pipeline
from slimdeploy.progress import Progress
from slimdeploy.report import Report
from slimdeploy.scoring import agreement
from slimdeploy.serve.engines import onnx_sessions
from slimdeploy.tables import verdict

CONFIG = Path(__file__).parent.parent / "deploy.toml"


def main() -> None:
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, Progress(console) as progress:
        rows = measure(load_config(CONFIG).model_copy(update={"out": folder}), progress, console)
    publish("demo", rows)


def measure(config: Config, progress: Progress, console: Console) -> list[Row]:
    """Run the pipeline, and ask its artifact once more without our operators."""
    start = time.perf_counter()
    report = run_pipeline(config, progress)
    seconds = time.perf_counter() - start
    console.print(*verdict(report), sep="\n")
    rows = [Row("time of the pipeline", seconds / 60, "minutes", 6, at_most=True), *accuracy(report)]
    for pair, share in (report.agreement or {}).items():
        rows.append(equal_answers(pair.replace("_", " and "), share))
    rows.extend(with_and_without_operators(config, progress, console))
    return rows


def accuracy(report: Report) -> Iterator[Row]:
    dense, artifact = report.accuracy["dense"], report.accuracy["artifact"]
    assert dense is not None
    assert artifact is not None
    yield Row("dense accuracy, exact match", 100 * dense.value, "%", 93, at_most=False)
    kept = 100 * artifact.value / dense.value
    yield Row("accuracy kept by the artifact at 60% sparsity", kept, "%", 97, at_most=False)


def equal_answers(pair: str, share: float) -> Row:
    return Row(f"equal greedy answers, {pair}", 100 * share, "%", 99.5, at_most=False)


def with_and_without_operators(config: Config, progress: Progress, console: Console) -> Iterator[Row]:
    """No row, and a note on the console, where there are no operators of ours."""
    if problem := missing_operators():
        console.print(f"note: answers without our operators are compared with nothing: {problem}", markup=False)
        return
    with opened_run(config, progress) as run:
        share = agreement(run.answers(run.engine()), answers_without_operators(run))
    yield equal_answers("with and without our operators", share)


def answers_without_operators(run: Run) -> list[str]:
    """What the artifact answers to the test split where there is no library of ours."""
    with patch.object(onnx_sessions, "register_operators", lambda _: None):
        return engine_answers(open_artifact(run.artifact().path), run.samples["test"], run.config, run.progress)


if __name__ == "__main__":
    main()
