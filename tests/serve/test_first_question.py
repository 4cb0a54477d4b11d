"""An engine that cannot answer a question is not served: nobody is told that the server is ready."""

import socket
from collections.abc import AsyncGenerator

import pytest
from echo_engine import EchoEngine

from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError
from slimdeploy.serve import server
from slimdeploy.serve.engine import Chunk, GenerationRequest, RequestError


class Blind(EchoEngine):
    """fails_with: what comes of every question."""

    def __init__(self, fails_with: Exception) -> None:
        super().__init__()
        self.fails_with = fails_with
        self.is_closed = False

    async def generate(self, _: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        raise self.fails_with
        yield

    async def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (RequestError("no pictures here"), ServeError, "echo cannot answer a first question: no pictures"),
        (OSError("a file of weights is cut"), OSError, "a file of weights is cut"),
    ],
)
def test_an_engine_that_cannot_answer_keeps_the_server_from_starting(
    error: Exception, kind: type[Exception], sentence: str, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Blind(error)
    monkeypatch.setattr(server, "create_engine", lambda *_: engine)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(kind, match=sentence):
        server.run_server(artifact, ServeConfig(port=port), lambda _: pytest.fail("it is ready"))
    assert engine.is_closed
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
