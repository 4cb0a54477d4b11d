"""One line for every request: who asked, what came of it, how long it took; never what was said.

As text for people, or as JSON for programs (`serve.log_format`).
"""

import json
import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .engine import Chunk, Usage
from .metrics import Metrics

log = logging.getLogger(__name__)

LogFormat = Literal["text", "json"]
_PLAIN = re.compile(r"[\w.,:@/-]+", re.ASCII)
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
# What asks these asks all the time.
_QUIET = frozenset({"/health", "/ready"})


@dataclass
class RequestNote:
    """What is known of a request by now. key: the name of the API key.

    start: a moment; other times are in seconds from it. answers: by their number, what was used last, and the finish
    reason once there is one.
    """

    id: str
    method: str
    path: str
    key: str = ""
    status: int = 0
    first_token: float | None = None
    total: float = 0.0
    answers: dict[int, tuple[Usage, str | None]] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def saw(self, number: int, chunk: Chunk) -> None:
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.start
        self.answers[number] = chunk.usage, chunk.finish_reason

    def end(self) -> None:
        self.total = time.perf_counter() - self.start

    def fields(self) -> dict[str, Any]:
        """What there is to tell, in order."""
        found: dict[str, Any] = {"id": self.id, "request": f"{self.method} {self.path}", "status": self.status}
        if self.key:
            found["key"] = self.key
        if self.answers:
            used = [usage for usage, _ in self.answers.values()]
            found["prompt_tokens"] = used[0].prompt_tokens
            found["cached_tokens"] = min(usage.cached_tokens for usage in used)
            found["completion_tokens"] = sum(usage.completion_tokens for usage in used)
            found["finish"] = ",".join(reason or "unfinished" for _, reason in self.answers.values())
        if self.first_token is not None:
            found["first_token_ms"] = round(1000 * self.first_token, 1)
        return found | {"total_ms": round(1000 * self.total, 1)}


def note_of(scope: Scope) -> RequestNote:
    """Of the request that is being answered."""
    note: RequestNote = scope["state"]["note"]
    return note


class RequestLog:
    """ASGI middleware, around all others. Its line has the id that the client is told as X-Request-Id.

    metrics: have every response as well.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        own = asked if _ID.fullmatch(asked) else uuid.uuid4().hex
        note = RequestNote(own, scope["method"][:20], scope["path"][:200])
        scope.setdefault("state", {})["note"] = note

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                note.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = note.id
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            note.end()
            self._metrics.sent(note.method, _route(scope), note.status, note.total)
            level = logging.DEBUG if note.path in _QUIET else logging.INFO
            fields = note.fields()
            told = " ".join(f"{name}={_written(value)}" for name, value in fields.items())
            log.log(level, "%s", told, extra={"fields": fields})


def _route(scope: Scope) -> str:
    """The server's own, as it is declared; empty for a path that is none of them."""
    route = scope.get("route")
    return getattr(route, "path", "")


def _written(value: object) -> str:
    """JSON's quotes keep a path with line breaks on one line."""
    return json.dumps(value) if isinstance(value, str) and not _PLAIN.fullmatch(value) else str(value)


class JsonLines(logging.Formatter):
    """Every line of the log as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": moment, "level": record.levelname.lower(), "logger": record.name}
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        line |= fields if fields is not None else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_log(form: LogFormat) -> None:
    """To stderr: our own notes, such as how weights are held; other packages' only from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("slimdeploy").setLevel(logging.INFO)
