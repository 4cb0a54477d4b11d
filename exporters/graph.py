"""What a graph of an ONNX export is, before it is traced. Knows no ONNX."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import nn

VISION_ENCODER = "vision_encoder"
EMBED_TOKENS = "embed_tokens"
DECODER = "decoder_model_merged"
BATCH_SIZE = "batch_size"
CACHE_ROWS_SIZE = "cache_rows_size"
"""The first dimension of caches, while a graph is traced: onnx_attention says what becomes of it."""


@dataclass(frozen=True)
class Graph:
    """One graph to write.

    sample: arguments of `part` to trace with. axes: the named dynamic axes of each of them. tracing: what must be so
    while it is traced. weights: what the model calls the parameters of `part`.
    """

    name: str
    part: nn.Module
    sample: tuple[Any, ...]
    axes: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tracing: Callable[[], AbstractContextManager[None]] = nullcontext
    weights: Mapping[str, str] = field(default_factory=dict)
