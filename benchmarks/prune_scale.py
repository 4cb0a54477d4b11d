"""Pruning models that do not fit into memory, and pruning beside llm-compressor: time and peak memory.

make bench-scale
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prune_runs import PEER, Criterion, Job, Run, Tool, run
from random_llava import Shape, Tower, write_checkpoint, write_samples
from results import Row, publish
from rich import box
from rich.table import Table

from slimdeploy.policy import Tower as TowerName
from slimdeploy.streaming import load_streamed

CRITERIA: tuple[Criterion, ...] = ("wanda", "sparsegpt")
TOOLS: tuple[Tool, ...] = ("llm-compressor", "slimdeploy")
BLOCKS = 4
LARGE = Shape(
    vision=Tower(blocks=23, width=1024, mlp=4096, heads=16, key_value_heads=16),
    language=Tower(blocks=32, width=4096, mlp=11008, heads=32, key_value_heads=32),
    vocabulary=32064,
)
"""LLaVA-1.5-7B."""
SMALL = Shape(
    vision=Tower(blocks=1, width=64, mlp=128, heads=2, key_value_heads=2),
    language=Tower(blocks=22, width=2048, mlp=5632, heads=32, key_value_heads=4),
    vocabulary=32000,
)
"""A decoder that both tools prune, behind a vision tower that counts for nothing and is left out."""
TINY = Shape(
    vision=Tower(blocks=1, width=32, mlp=64, heads=2, key_value_heads=2),
    language=Tower(blocks=2, width=64, mlp=128, heads=4, key_value_heads=2),
    vocabulary=448,
    image=48,
    patch=12,
)


@dataclass(frozen=True)
class Scale:
    """How much is measured. samples, tokens: of each, a picture's among them."""

    large: Shape
    small: Shape
    samples: int = 8
    tokens: int = 640
    rounds: int = 3

    def first_blocks(self, count: int) -> "Scale":
        """With that many blocks of each tower of the large model, if it has more."""
        return replace(self, large=self.large.first_blocks(count))


FULL = Scale(LARGE, SMALL)
QUICK = Scale(TINY, TINY, samples=2, tokens=48, rounds=1)


def prepare(folder: Path, shape: Shape, scale: Scale, towers: Sequence[TowerName]) -> Job:
    checkpoint = write_checkpoint(folder / "dense", shape)
    model = load_streamed(str(checkpoint))
    samples = write_samples(folder, model, scale.samples, scale.tokens)
    return Job(checkpoint, samples, [layer for layer in model.layers() if layer.tower in towers])


def measure_large(folder: Path, scale: Scale) -> dict[Criterion, Run]:
    job = prepare(folder, scale.large, scale, ("vision", "projector", "language"))
    return {criterion: run("slimdeploy", criterion, job) for criterion in CRITERIA}


def measure_both(folder: Path, scale: Scale) -> dict[tuple[Tool, Criterion], Run]:
    """Medians; in every round each tool has its turn."""
    job = prepare(folder, scale.small, scale, ("language",))
    runs: dict[tuple[Tool, Criterion], list[Run]] = {}
    for _ in range(scale.rounds):
        for criterion in CRITERIA:
            for tool in TOOLS:
                runs.setdefault((tool, criterion), []).append(run(tool, criterion, job))
    return {key: _median(found) for key, found in runs.items()}


def _median(runs: Sequence[Run]) -> Run:
    return Run(
        statistics.median(each.seconds for each in runs), round(statistics.median(each.peak_bytes for each in runs))
    )


def large_rows(large: Mapping[Criterion, Run], shape: Shape) -> Iterator[Row]:
    for criterion, found in large.items():
        name = f"peak memory, 7B shape, {shape.blocks}, {criterion}"
        yield Row(name, found.peak_bytes / 1e9, "GB", 6, at_most=True)


def ratio_rows(both: Mapping[tuple[Tool, Criterion], Run]) -> Iterator[Row]:
    for criterion in CRITERIA if both else ():
        ours, theirs = both["slimdeploy", criterion], both["llm-compressor", criterion]
        against = f"against llm-compressor, {criterion}"
        yield Row(f"time {against}", ours.seconds / theirs.seconds, "times theirs", 0.8, at_most=True)
        yield Row(f"peak memory {against}", ours.peak_bytes / theirs.peak_bytes, "times theirs", 0.5, at_most=True)


def table(large: Mapping[Criterion, Run], both: Mapping[tuple[Tool, Criterion], Run], scale: Scale) -> Table:
    lines = Table("model", "blocks", "tool", "criterion", "time, s", "peak memory, GB", box=box.MARKDOWN)
    for column in lines.columns[-2:]:
        column.justify = "right"
    runs = [("7B shape", scale.large, "slimdeploy", criterion, found) for criterion, found in large.items()]
    runs += [("1B shape", scale.small, tool, criterion, found) for (tool, criterion), found in both.items()]
    for model, shape, tool, criterion, found in runs:
        figures = (f"{found.seconds:.1f}", f"{found.peak_bytes / 1e9:.2f}")
        lines.add_row(model, shape.blocks, tool, criterion, *figures)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: figures mean nothing, nothing is written")
    parser.add_argument(
        "--blocks",
        type=int,
        default=BLOCKS,
        help="of each tower of the 7B shape, 4 by default; with others nothing is written",
    )
    parser.add_argument("--full", action="store_true", help="all blocks of the 7B shape, and nothing beside them")
    parser.add_argument("--rounds", type=int, default=FULL.rounds, help="beside llm-compressor (default: 3)")
    parser.add_argument("--folder", type=Path, help="for temporary files, up to 28 GB with --full")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else replace(FULL, rounds=arguments.rounds)
    if not arguments.full:
        scale = scale.first_blocks(arguments.blocks)
    both: dict[tuple[Tool, Criterion], Run] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        large = measure_large(Path(folder), scale)
    if PEER in os.environ and not arguments.full:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            both = measure_both(Path(folder), scale)
    details: list[Table | str] = [table(large, both, scale)]
    if not both and not arguments.full:
        details.append(f"llm-compressor: not measured, {PEER} names no interpreter that has it")
    rows = [*large_rows(large, scale.large), *ratio_rows(both)]
    keep = not arguments.quick and (arguments.full or arguments.blocks == BLOCKS)
    name = "scale_full" if arguments.full else "scale"
    publish(name, rows, details, as_json=arguments.json, keep=keep)


if __name__ == "__main__":
    main()
