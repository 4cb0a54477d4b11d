"""Exporting a model to ONNX that does not fit into memory, and verifying it there: time, peak memory, bytes.

make bench-onnx-scale
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from prune_scale import LARGE, TINY
from random_llava import Shape, half_of, write_checkpoint, write_samples
from results import Row, markdown_table, publish
from rich.table import Table

from slimdeploy.config import OnnxWeights
from slimdeploy.streaming import load_streamed

PROGRAM = Path(__file__).parent / "programs" / "export_streamed.py"
WEIGHTS: OnnxWeights = "packed-int4"
PROMPTS = 1
TOKENS, TINY_TOKENS = 640, 48
"""Of a prompt, its picture's among them."""


@dataclass(frozen=True)
class Stage:
    """peak_bytes: of the process until its end."""

    name: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Exported:
    """seconds: from loading to the verified export, without imports. peak_bytes: of the whole process.

    parts: bytes of each graph with its weights, by name. problem: what the verification failed on, if it did.
    """

    seconds: float
    peak_bytes: int
    stages: Sequence[Stage]
    parts: dict[str, int]
    verification: dict[str, Any] | None
    problem: str | None

    @property
    def file_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def beyond(self) -> float:
        """What the peak has beyond the export's weights, which are all loaded at once, in sizes of its largest part."""
        return (self.peak_bytes - self.file_bytes) / max(self.parts.values())


def measure(folder: Path, shape: Shape, weights: OnnxWeights, prompts: int, tokens: int) -> Exported:
    """Write a checkpoint, half zeros, and export it in a process of its own."""
    checkpoint = write_checkpoint(folder / "pruned", shape, prune=half_of)
    samples = write_samples(folder, load_streamed(str(checkpoint), "bfloat16"), prompts, tokens)
    target = folder / "exported"
    target.mkdir()
    command = [sys.executable, str(PROGRAM), str(checkpoint), str(target), weights, str(samples)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(f"the export failed:\n{finished.stderr}")
    result = json.loads(finished.stdout.splitlines()[-1])
    stages = [Stage(**each) for each in result.pop("stages")]
    parts = {file.stem: sum(each.stat().st_size for each in _files(file)) for file in sorted(target.glob("*.onnx"))}
    if not parts:
        raise RuntimeError(f"the export wrote no graph: {result['problem']}")
    return Exported(**result, stages=stages, parts=parts)


def _files(graph: Path) -> Iterator[Path]:
    return graph.parent.glob(f"{graph.name}*")


def rows_of(found: Exported, shape: Shape, weights: OnnxWeights, prompts: int) -> Iterator[Row]:
    of = f"{shape.blocks}, {weights}"
    yield Row(f"peak memory, {of}", found.peak_bytes / 1e9, "GB", 8, at_most=True)
    yield Row(f"peak beyond the weights, {of}", found.beyond, "times the largest part", 1.5, at_most=True)
    name = f"prompts verified, {of}"
    if found.verification is None:
        yield Row(name, None, f"not verified: {found.problem}", prompts, at_most=False)
    else:
        yield Row(name, found.verification["prompts"], "prompts", prompts, at_most=False)


def stage_table(found: Exported) -> Table:
    table = markdown_table("stage", "time, s", "peak memory so far, GB")
    for stage in (*found.stages, Stage("all", found.seconds, found.peak_bytes)):
        table.add_row(stage.name, f"{stage.seconds:.1f}", f"{stage.peak_bytes / 1e9:.2f}")
    return table


def part_table(found: Exported) -> Table:
    table = markdown_table("part", "files, MB")
    for name, size in (*found.parts.items(), ("all", found.file_bytes)):
        table.add_row(name, f"{size / 1e6:.0f}")
    return table


def note(found: Exported, prompts: int) -> str:
    if found.verification is None:
        return f"Not verified: {found.problem}."
    shown = (
        "relative_error",
        "relative_error_of_rounding",
        "relative_error_of_products",
        "ties",
        "tokens",
        "batch_sizes",
    )
    said = ", ".join(f"{name} {found.verification[name]}" for name in shown if name in found.verification)
    return f"Verified by the export itself, prompts {prompts}, each with a picture: {said}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="a tiny shape: figures mean nothing, nothing is written")
    parser.add_argument("--blocks", type=int, help="of each tower of the 7B shape, all by default; nothing is written")
    parser.add_argument("--weights", choices=get_args(OnnxWeights), default=WEIGHTS, help=f"{WEIGHTS} by default")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="to verify the export on, 1 by default")
    parser.add_argument("--folder", type=Path, help="for temporary files, up to 20 GB with packed weights")
    arguments = parser.parse_args()
    shape, tokens = (TINY, TINY_TOKENS) if arguments.quick else (LARGE, TOKENS)
    if arguments.blocks:
        shape = shape.first_blocks(arguments.blocks)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), shape, arguments.weights, arguments.prompts, tokens)
    rows = list(rows_of(found, shape, arguments.weights, arguments.prompts))
    details = [stage_table(found), part_table(found), note(found, arguments.prompts)]
    as_goals_say = arguments.blocks is None and (arguments.weights, arguments.prompts) == (WEIGHTS, PROMPTS)
    keep = as_goals_say and not arguments.quick
    publish("onnx_scale", rows, details, as_json=arguments.json, keep=keep)


if __name__ == "__main__":
    main()
