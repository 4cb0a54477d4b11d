"""The program that onnx_scale.py measures: exports a checkpoint to ONNX with slimdeploy, its blocks left on disk.

python export_streamed.py CHECKPOINT EMPTY_FOLDER WEIGHTS SAMPLES prints as JSON the seconds from loading to the
verified export, the peak memory of the process, every stage, and what the verification found. SAMPLES: a file of
slimdeploy's entries, all of which the export is verified on.
"""

import json
import sys
import time
from pathlib import Path

from peak_memory import peak_bytes
from rich.console import Console

from slimdeploy.config import ExportConfig, OnnxConfig
from slimdeploy.errors import ExportError
from slimdeploy.exporters import ExportJob, export
from slimdeploy.progress import Bar, Progress
from slimdeploy.records import read_records
from slimdeploy.streaming import load_streamed


class Stages(Progress):
    """Says nothing and remembers when each bar began. began: name, seconds, and the peak memory until then."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.began: list[tuple[str, float, int]] = []

    def bar(self, description: str, total: int) -> Bar:
        self.begin(description)
        return super().bar(description, total)

    def begin(self, name: str) -> None:
        self.began.append((name, time.perf_counter(), peak_bytes()))

    def as_json(self) -> list[dict[str, str | float | int]]:
        """Each stage until the next began, less the last, which is none."""
        return [
            {"name": name, "seconds": end - start, "peak_bytes": peak}
            for (name, start, _), (_, end, peak) in zip(self.began, self.began[1:], strict=False)
        ]


source, target, weights, samples = sys.argv[1:]
stages = Stages()
stages.begin("loading")
prompts = [located.sample for located in read_records(Path(samples), Path(samples).parent)]
model = load_streamed(source)
config = ExportConfig(onnx=OnnxConfig(weights=weights))  # type: ignore[arg-type]
result: dict[str, object] = {"verification": None, "problem": None}
try:
    result["verification"] = export(model, Path(target), ExportJob(config, prompts), stages)
except ExportError as error:  # what was written and measured until then is worth telling all the same
    result["problem"] = str(error)
stages.begin("the end")
listed = stages.as_json()
seconds = stages.began[-1][1] - stages.began[0][1]
sys.stdout.write(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), "stages": listed} | result) + "\n")
