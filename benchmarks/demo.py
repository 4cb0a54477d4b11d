"""The whole path on the demo model, from nothing: how long it takes, how much accuracy it keeps, who agrees.

make bench-demo
"""

import tempfile
import time
from pathlib import Path

from results import Row, publish
from rich.console import Console

from slimdeploy.config_file import load_config
from slimdeploy.pipeline import run_pipeline
from slimdeploy.progress import Progress
from slimdeploy.tables import verdict

CONFIG = Path(__file__).parent.parent / "deploy.toml"


def main() -> None:
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, Progress(console) as progress:
        config = load_config(CONFIG).model_copy(update={"out": folder})
        start = time.perf_counter()
        report = run_pipeline(config, progress)
        seconds = time.perf_counter() - start
    console.print(*verdict(report), sep="\n")
    dense, artifact = report.accuracy["dense"], report.accuracy["artifact"]
    assert dense is not None
    assert artifact is not None
    rows = [
        Row("time of the pipeline", seconds / 60, "minutes", 6, at_most=True),
        Row("dense accuracy, exact match", 100 * dense.value, "%", 93, at_most=False),
        Row(
            "accuracy kept by the artifact at 60% sparsity", 100 * artifact.value / dense.value, "%", 97, at_most=False
        ),
    ]
    for pair, share in (report.agreement or {}).items():
        name = f"equal greedy answers, {pair.replace('_', ' and ')}"
        rows.append(Row(name, 100 * share, "%", 99.5, at_most=False))
    publish("demo", rows)


if __name__ == "__main__":
    main()
