"""Starting the server: in this process until it is stopped, or as a child process for as long as a caller needs it."""

import errno
import gc
import logging
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import IO

import uvicorn
from fastapi import FastAPI

from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError

from .app import create_app
from .connections import Connection, allow_connections
from .engine import Engine
from .engines import create_engine
from .first_question import answer_first_question
from .gate import is_loopback
from .keys import VARIABLE, load_keys
from .line import Line

log = logging.getLogger(__name__)

# Once the engine has ended what still ran, its last words have so long to reach their clients.
_SECONDS_FOR_LAST_WORDS = 5
# Longer than proxies hold a connection that is idle: one that is closed at this end may fail the request that it gets.
_SECONDS_OF_KEEP_ALIVE = 75
# A model of several gigabytes from a slow disk takes minutes.
_SECONDS_TO_START = 600
_SECONDS_TO_STOP = 5
_LINES_OF_LOG = 5


def run_server(artifact: Artifact, config: ServeConfig, ready: Callable[[str], None] | None = None) -> None:
    """Serve until the process is interrupted; `ready` gets the URL once requests are answered.

    Raises ServeError at once, before the model is loaded, when the port is taken.
    """
    with listen(config) as listener:
        _warn_where_open(config)
        allow_connections()
        engine = create_engine(artifact, config)
        gc.freeze()  # what is loaded stays: looking through it for garbage would hold up every stream
        server = Server(create_app(engine, config), engine, config, partial(ready or _unheard, url_of(listener)))
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            # By that uvicorn hands on the signal once all is over.
            log.info("stopped")


def _warn_where_open(config: ServeConfig) -> None:
    """Also raises ServeError for keys that cannot be read, before a model is loaded."""
    if not load_keys(config) and not is_loopback(config.host):
        log.warning(
            "serve.host = '%s' is reached from the network, and everybody there is answered: set serve.api_keys_file",
            config.host,
        )


def _unheard(_: str) -> None:
    pass


class Server(uvicorn.Server):
    """uvicorn's server, quiet. It is ready once the engine has answered a first question.

    Told to stop, it is ready no more and takes no request; those that are inside have `config.drain_s`, then they end.
    Told again, it ends them at once.
    """

    def __init__(self, app: FastAPI, engine: Engine, config: ServeConfig, ready: Callable[[], None]) -> None:
        settings = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_config=None,  # its own would not follow serve.log_format
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=_SECONDS_OF_KEEP_ALIVE,
            timeout_graceful_shutdown=_SECONDS_FOR_LAST_WORDS,
        )
        super().__init__(settings)
        self._line: Line = app.state.line
        self._engine = engine
        self._seconds = config.drain_s
        self._ready = ready
        self._end: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await answer_first_question(self._engine)
        except BaseException:
            await self._engine.close()
            raise
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal; uvicorn's own way is to listen no more at once, and refuse connections without a word."""
        if self._line.is_closed:
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        self.stop()

    def stop(self) -> None:
        """May be called in any thread."""
        self._line.close()
        self._end = time.monotonic() + self._seconds
        log.info("stopping: %d requests have up to %g s", self._line.inside, self._seconds)

    async def on_tick(self, counter: int) -> bool:
        is_over = self._end is not None and (self._line.inside == 0 or time.monotonic() >= self._end)
        return is_over or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What still runs ends with an error that its client can read."""
        await self._engine.close()
        await super().shutdown(sockets)


def listen(config: ServeConfig) -> socket.socket:
    """A listening socket. Raises ServeError that names the port, or the host."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        # Listening from the start, so that a second server fails now and not when its model is loaded.
        listener = socket.create_server((config.host, config.port), family=family, backlog=2048)
        # Connections inherit it; asyncio sets it only on sockets whose protocol number is TCP's, and these have 0.
        # Without it the second chunk of a stream waits 40 ms for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except socket.gaierror:
        raise ServeError(f"serve.host = '{config.host}' is no address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServeError(
                f"port {config.port} on {config.host} is in use; stop what listens there or choose another with --port"
            ) from None
        raise ServeError(f"cannot listen on {config.host} port {config.port}: {error.strerror or error}") from None


def url_of(listener: socket.socket) -> str:
    """Where a program on this machine reaches the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def background_server(artifact: Artifact, config: ServeConfig) -> Iterator[str]:
    """The server as a child process, on a free port of this machine; gives its base URL, and ends it afterwards.

    A process of its own, so that what is measured is what a device would run: no torch, and no share in the caller's
    interpreter. Raises ServeError with the child's last words when it does not start in time.
    """
    settings = config.model_copy(update={"host": "127.0.0.1", "port": 0, "api_keys_file": ""})
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-m", "slimdeploy.serve", str(artifact.path.absolute()), settings.model_dump_json()]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        try:
            assert child.stdout is not None
            if not select.select([child.stdout], [], [], _SECONDS_TO_START)[0]:
                raise ServeError(
                    f"the server for {artifact.source} was not ready after {_SECONDS_TO_START:g} s: {_last_lines(log)}"
                )
            url = child.stdout.readline().strip()
            if not url:
                child.wait()
                raise ServeError(f"the server for {artifact.source} did not start: {_last_lines(log)}")
            yield url
        finally:
            _stop(child, config.drain_s + _SECONDS_FOR_LAST_WORDS)


def _stop(child: "subprocess.Popen[str]", seconds: float) -> None:
    child.terminate()
    try:
        child.communicate(timeout=seconds + _SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


def _last_lines(log: IO[str]) -> str:
    log.seek(0)
    return " / ".join(log.read().strip().splitlines()[-_LINES_OF_LOG:]) or "it left no message"
