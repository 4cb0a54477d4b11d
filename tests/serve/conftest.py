"""A tiny checkpoint and its ONNX export, made once; an engine that echoes; servers in a thread."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import openai
import pytest
from artifacts import new_artifact
from echo_engine import EchoEngine
from live_server import Serve, live_server
from made_once import MakeOnce
from requests_to_send import client_of
from tiny import make_samples, make_tiny_llava

from slimdeploy.artifact import Artifact, Manifest, open_artifact
from slimdeploy.config import ExportConfig, OnnxConfig, OnnxWeights, ServeConfig
from slimdeploy.progress import Progress
from slimdeploy.serve.engine import Engine


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llava(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def hub_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llava(tmp_path_factory.mktemp("hub_checkpoint"), hub_layout=True)


@pytest.fixture(scope="session")
def artifact(checkpoint: Path, make_once: MakeOnce) -> Artifact:
    """Dense, so that answers equal transformers'."""
    return make_once("served_artifact", partial(_exported, checkpoint, "dense-fp32"))


@pytest.fixture(scope="session")
def packed_artifact(checkpoint: Path, make_once: MakeOnce) -> Artifact:
    return make_once("served_packed_artifact", partial(_exported, checkpoint, "packed-int8"))


def _exported(checkpoint: Path, weights: OnnxWeights, parent: Path) -> Artifact:
    from slimdeploy.exporters import ExportJob, export
    from slimdeploy.model import load_model

    with new_artifact(parent / "tiny", Manifest("onnx", "tiny", "llava", verification={"weights": weights})) as folder:
        job = ExportJob(ExportConfig(onnx=OnnxConfig(weights=weights)), make_samples(2))
        export(load_model(str(checkpoint)), folder, job, Progress.silent())
    return open_artifact(parent / "tiny")


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an engine until the test ends; gives the base URL."""
    with ExitStack() as servers:

        def start(engine: Engine, config: ServeConfig | None = None) -> str:
            return servers.enter_context(live_server(engine, config or ServeConfig()))

        yield start


@pytest.fixture
def url(serve: Serve, engine: EchoEngine) -> str:
    return serve(engine)


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return client_of(url)
