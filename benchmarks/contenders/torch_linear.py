"""torch's linear layer as it comes, and with weights packed by oneDNN as torch.compile does when it freezes them.

bf16 goes through oneDNN where the CPU has instructions for it.
"""

from typing import Literal

import numpy as np
import torch
from rounds import Call, Contender, Floats, Prepare

from . import Stack


def torch_linear(stack: Stack, precision: Literal["bf16", "fp32"], rng: np.random.Generator) -> Contender:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layer_bytes = stack.size**2 * dtype.itemsize
    chunks = [_layer(_weight(stack.size, dtype, rng)) for _ in range(stack.chunks(layer_bytes, 1))]
    return Contender(f"torch {precision}", layer_bytes, 1, chunks)


def packed_bf16(stack: Stack, rng: np.random.Generator) -> Contender:
    layer_bytes = stack.size**2 * torch.bfloat16.itemsize
    chunks = [_packed_layer(_weight(stack.size, torch.bfloat16, rng)) for _ in range(stack.chunks(layer_bytes, 1))]
    return Contender("torch, packed bf16", layer_bytes, 1, chunks)


def _weight(size: int, dtype: torch.dtype, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((size, size), np.float32)).to(dtype)


def _layer(weight: torch.Tensor) -> Prepare:
    def prepare(x: Floats, threads: int) -> Call:
        torch.set_num_threads(threads)
        inputs = torch.from_numpy(x).to(weight.dtype)

        @torch.inference_mode()
        def run() -> torch.Tensor:
            return torch.nn.functional.linear(inputs, weight)

        return run

    return prepare


def _packed_layer(weight: torch.Tensor) -> Prepare:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)

    def prepare(x: Floats, threads: int) -> Call:
        torch.set_num_threads(threads)
        inputs = torch.from_numpy(x).to(weight.dtype)

        @torch.inference_mode()
        def run() -> torch.Tensor:
            return torch.ops.mkldnn._linear_pointwise(inputs, packed, None, "none", [], "")

        return run

    return prepare
