"""A server in a thread of the test's process, on a free port."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from echo_engine import EchoEngine

from slimdeploy.config import ServeConfig
from slimdeploy.serve.app import create_app
from slimdeploy.serve.engine import Engine
from slimdeploy.serve.server import Server, listen, url_of

Serve = Callable[..., str]
"""Serves an engine, with a ServeConfig or the default one, until the test ends; gives the base URL."""


@contextmanager
def live_server(engine: Engine, config: ServeConfig) -> Iterator[str]:
    ready = threading.Event()
    listener = listen(config.model_copy(update={"port": 0}))
    url = url_of(listener)
    server = Server(create_app(engine, config), engine, config, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(10)
    if isinstance(engine, EchoEngine):
        engine.forget()  # the first question, which was not a test's
    try:
        yield url
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
