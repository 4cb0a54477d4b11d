"""A tiny checkpoint and its ONNX export, made once; an engine that echoes; servers in a thread; a browser."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from artifacts import new_artifact
from echo_engine import EchoEngine
from live_server import Serve, live_server
from made_once import MakeOnce
from requests_to_send import client_of
from tiny import make_samples, make_tiny_llava
from visited_page import Visit, visited

from slimdeploy.artifact import Artifact, Manifest, open_artifact
from slimdeploy.config import ExportConfig, OnnxConfig, OnnxWeights, ServeConfig
from slimdeploy.progress import Progress
from slimdeploy.serve.engine import Engine

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


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


@pytest.fixture(params=["shared", "own"])
def any_artifact(request: pytest.FixtureRequest, packed_artifact: Artifact, artifact: Artifact) -> Artifact:
    """With one cache for all, and with one for each."""
    return packed_artifact if request.param == "shared" else artifact


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
def client(url: str) -> Iterator[openai.OpenAI]:
    with client_of(url) as client:
        yield client


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """Debian's, and none that is downloaded. Of one module: while it is there, no other test may run an event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: "Browser") -> Iterator[Visit]:
    """Opens the chat page of a server, once it knows the model; what it complained of fails the test in the end."""
    with ExitStack() as pages:

        def open_page(url: str, **options: Any) -> "Page":
            return pages.enter_context(visited(chromium, url, options))

        yield open_page
