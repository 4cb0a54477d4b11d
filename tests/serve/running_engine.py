"""The ONNX engine for as long as a test needs it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.serve.engines.onnx import OnnxEngine


@contextmanager
def engine_of(artifact: Artifact, **settings: Any) -> Iterator[OnnxEngine]:
    """With one thread, four requests at a time and nothing kept, unless settings say otherwise."""
    engine = OnnxEngine(artifact, ServeConfig(**{"threads": 1, "concurrency": 4, "cache_mb": 0} | settings))
    try:
        yield engine
    finally:
        asyncio.run(engine.close())
