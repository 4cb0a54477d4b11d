"""Our kernels beside other engines' on one linear layer: speed, share of the memory roof, memory of a session.

make bench-kernels
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import session_memory
from contenders import Stack, llama_cpp, onnxruntime_matmul, openvino_matmul, ours, torch_linear
from kernel_tables import Block, memory_bound, ratio_table, time_table
from results import Row, publish
from roof import readers
from rounds import Contender, Setting, seconds_per_layer

from slimdeploy.doctor import cores
from slimdeploy.packed import ValueType

PREFILL = 576
_MEGABYTE = 2**20


@dataclass(frozen=True)
class Scale:
    """How much is measured. buffer_bytes: of memory that is read to find the roof."""

    stack: Stack
    buffer_bytes: int
    rounds: int

    def settings(self) -> list[Setting]:
        few = -(-self.rounds // 3)
        one = [Setting(1, 1, self.rounds), Setting(4, 1, few), Setting(8, 1, few), Setting(PREFILL, 1, few, False)]
        if cores() == 1:
            return one
        return [*one, Setting(1, cores(), self.rounds), Setting(PREFILL, cores(), few, False)]


FULL = Scale(Stack(4096, 540 * _MEGABYTE), 512 * _MEGABYTE, 15)
QUICK = Scale(Stack(256, _MEGABYTE // 4), 2 * _MEGABYTE, 1)


@dataclass(frozen=True)
class Goal:
    """`engine` is to be `factor` times as fast as `peer`; of several whose names begin so, as the fastest."""

    engine: str
    peer: str
    rows: int
    factor: float


GOALS: Mapping[ValueType, Sequence[Goal]] = {
    "int4": (
        Goal("ours int4 50%", "MatMulNBits int4", 1, 2.2),
        Goal("ours int4 26:64", "MatMulNBits int4", 1, 2.7),
        Goal("ours int4 50%", "llama.cpp Q4_0", 1, 1.3),
        Goal("ours int4 50%", "MatMulNBits int4", PREFILL, 4),
        Goal("ours int4 50%", "onnxruntime dynamic int8", PREFILL, 0.95),
    ),
    "int8": (
        Goal("ours int8 50%", "onnxruntime dynamic int8", 1, 2.0),
        Goal("ours int8 50%", "MatMulNBits int4", PREFILL, 4),
        Goal("ours int8 50%", "onnxruntime dynamic int8", PREFILL, 0.95),
    ),
    "bf16": (
        Goal("ours bf16 50%", "torch bf16", 1, 2.7),
        Goal("ours bf16 50%", "torch bf16", PREFILL, 0.95),
    ),
}


def peers(values: ValueType, stack: Stack, rng: np.random.Generator) -> Iterator[Contender]:
    """Engines to compare weights of this type with; the ratios are against the first."""
    match values:
        case "int4":
            yield onnxruntime_matmul.matmul_nbits(stack, 4, rng)
            yield onnxruntime_matmul.dynamic_int8(stack, rng)
            yield from llama_cpp.contenders(stack, rng)
            yield from openvino_matmul.contenders(stack, 4, rng)
        case "int8":
            yield onnxruntime_matmul.dynamic_int8(stack, rng)
            yield onnxruntime_matmul.matmul_nbits(stack, 8, rng)
            yield onnxruntime_matmul.matmul_nbits(stack, 4, rng)
            yield from openvino_matmul.contenders(stack, 8, rng)
        case _:
            yield torch_linear.torch_linear(stack, "bf16", rng)
            yield torch_linear.packed_bf16(stack, rng)
            yield torch_linear.torch_linear(stack, "fp32", rng)
            yield onnxruntime_matmul.fp32(stack, rng)


def left_out() -> Iterator[str]:
    if not llama_cpp.available():
        yield f"llama.cpp: not measured, {llama_cpp.FOLDER} names no folder with its library"
    if not openvino_matmul.available():
        yield "openvino: not measured, not installed"
    yield "deepsparse: not measured, its last release, 1.8.0, asks for onnx before 1.15"


def measure(values: ValueType, scale: Scale, folder: Path, rng: np.random.Generator) -> Block:
    """folder: for temporary files."""
    contenders = list(peers(values, scale.stack, rng))
    contenders += [ours.linear(scale.stack, values, pattern, rng) for pattern in ours.PATTERNS]
    reading = readers(scale.buffer_bytes, folder)
    seconds, roof = {}, {}
    for setting in scale.settings():
        measured = seconds_per_layer([*contenders, *reading], setting, scale.stack.size, rng)
        seconds[setting] = {each.name: measured[each.name] for each in contenders}
        if reading:
            roof[setting] = max(each.layer_bytes / measured[each.name] for each in reading)
    return Block(
        contenders[0].name,
        {each.name: each.layout for each in contenders},
        {each.name: each.layer_bytes for each in contenders},
        seconds,
        roof,
    )


def rows_of(goals: Sequence[Goal], block: Block) -> Iterator[Row]:
    """Goals against an engine that is not there are left out."""
    for goal in goals:
        setting = next(setting for setting in block.seconds if (setting.rows, setting.threads) == (goal.rows, 1))
        found = [engine for engine in block.layouts if engine.startswith(goal.peer)]
        if not found:
            continue
        peer = min(found, key=block.seconds[setting].__getitem__)
        name = f"{goal.engine} against {peer}, {setting.name}"
        yield Row(name, block.ratio(goal.engine, setting, peer), "times as fast", goal.factor, at_most=False)


def memory_row(values: ValueType, scale: Scale, folder: Path, rng: np.random.Generator) -> Row:
    model = session_memory.write_model(folder, scale.stack, values, "50%", rng)
    file = session_memory.file_bytes(model)
    name = f"peak memory of a session over {file / 1e6:.0f} MB of packed {values} 50%"
    return Row(name, session_memory.peak_bytes(model) / 1e6, "MB", (1.3 * file + 200e6) / 1e6, at_most=True)


def notes(blocks: Sequence[Block], rng: np.random.Generator) -> Iterator[str]:
    """What a reader of the tables has to know."""
    call = seconds_per_layer([ours.call_from_python(rng)], Setting(1, 1, 3), ours.SMALLEST, rng)
    yield "One thread: CPU time of the process. More threads: time on the clock. Medians of interleaved rounds."
    for setting in memory_bound(blocks[0].roof):
        read = ", ".join(f"{block.roof[setting] / 1e9:.1f}" for block in blocks)
        yield f"The roof, memory read in the same rounds, {setting.name}: {read} GB/s."
    yield from (f"A call of ours from Python takes {1e6 * seconds:.1f} µs of each figure." for seconds in call.values())
    yield from left_out()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="small matrices: figures mean nothing, nothing is written")
    parser.add_argument("--only", choices=GOALS, help="one type of value; nothing is written")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    rng = np.random.Generator(np.random.SFC64(0))
    blocks, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for values in [arguments.only] if arguments.only else GOALS:
            block = measure(values, scale, Path(folder), rng)
            blocks.append(block)
            rows += [*rows_of(GOALS[values], block), memory_row(values, scale, Path(folder), rng)]
    details = [ratio_table(blocks), time_table(blocks), "\n".join(notes(blocks, rng))]
    keep = not (arguments.quick or arguments.only)
    publish("kernels", rows, details, as_json=arguments.json, keep=keep)


if __name__ == "__main__":
    main()
