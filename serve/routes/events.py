"""Server-sent events of the endpoints that stream several answers and end with `[DONE]`."""

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable

from pydantic import BaseModel

from slimdeploy.errors import ServeError

from ..engine import Chunk, RequestError, Usage
from ..protocol.answers import usage_of
from ..refusals import told

log = logging.getLogger(__name__)


async def events(
    choices: AsyncIterator[tuple[int, Chunk]],
    tell: Callable[[int, Chunk], Iterable[BaseModel]],
    tell_usage: Callable[[Usage], BaseModel] | None,
    count: int,
) -> AsyncIterator[str]:
    """tell: what is said of an answer's chunk. tell_usage: last of all, if it is wanted. count: answers to a prompt."""
    last: dict[int, Chunk] = {}
    try:
        async for number, chunk in choices:
            for event in tell(number, chunk):
                yield line(event.model_dump_json())
            last[number] = chunk
        if tell_usage is not None:
            yield line(tell_usage(usage_of([last[number] for number in sorted(last)], count)).model_dump_json())
    except Exception as error:  # the status line is long gone, yet the client must learn that the answer is not whole
        log_failure(error)
        yield line(json.dumps(told(error)))
        return
    yield line("[DONE]")


def log_failure(error: Exception) -> None:
    """Of a stream. With its cause where it is the server's."""
    if not isinstance(error, RequestError | ServeError):
        log.exception("a request failed while its answer was streaming")


def line(data: str, kind: str | None = None) -> str:
    """kind: of the event, where the API names it."""
    named = "" if kind is None else f"event: {kind}\n"
    return f"{named}data: {data}\n\n"
