"""Pruning a checkpoint in a process of its own, by slimdeploy or llm-compressor: time, peak memory, share of zeros."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import safe_open

from slimdeploy.archs.llava import LLAVA
from slimdeploy.checkpoint import weight_files
from slimdeploy.policy import Layer, Tower

PEER = "SLIMDEPLOY_BENCH_LLMCOMPRESSOR"
"""Names the interpreter of an environment with llm-compressor."""
PROGRAMS = Path(__file__).parent / "programs"
SPARSITY = 0.5
_NEAR = 0.005
"""llm-compressor rounds in every block of columns, and a few random weights are zero before."""

Tool = Literal["slimdeploy", "llm-compressor"]
Criterion = Literal["wanda", "sparsegpt"]


@dataclass(frozen=True)
class Job:
    """samples: as `random_llava.write_samples` leaves them. layers: those to be pruned."""

    checkpoint: Path
    samples: Path
    layers: Collection[Layer]

    @property
    def towers(self) -> list[Tower]:
        return sorted({layer.tower for layer in self.layers})


@dataclass(frozen=True)
class Run:
    """seconds: from loading to the written checkpoint, without imports. peak_bytes: of the whole process."""

    seconds: float
    peak_bytes: int


def run(tool: Tool, criterion: Criterion, job: Job) -> Run:
    """Prune, look at what was written, and remove it. Raises ValueError where its zeros are not what was asked for."""
    target = job.checkpoint.parent / "pruned"
    arguments = [str(job.checkpoint), str(target), criterion, str(SPARSITY)]
    if tool == "slimdeploy":
        command = [sys.executable, PROGRAMS / "prune_streamed.py", *arguments, job.samples, *job.towers]
    else:
        encoded = job.samples.with_suffix(".safetensors")
        command = [os.environ[PEER], PROGRAMS / "prune_llmcompressor.py", *arguments, encoded]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise RuntimeError(f"{tool} failed:\n{finished.stderr}")
        check_zeros(target, job.layers)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return Run(**json.loads(finished.stdout.splitlines()[-1]))


def check_zeros(folder: Path, layers: Collection[Layer]) -> None:
    """Raises ValueError for a layer that is not half zeros. Matrix by matrix: a checkpoint may exceed the memory."""
    files = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            files |= dict.fromkeys(opened.keys(), file)
    for layer in layers:
        name = LLAVA.stored_name(f"{layer.name}.weight", files)
        with safe_open(files[name], framework="pt") as opened:
            share = float((opened.get_tensor(name) == 0).double().mean())
        if abs(share - SPARSITY) > _NEAR:
            raise ValueError(f"{name} in {folder} has {share:.2%} zeros, not {SPARSITY:.0%}")
