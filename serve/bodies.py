"""Bodies of requests: JSON alone, within limits of size and time."""

import asyncio

from fastapi import Request

from slimdeploy.config import ServeConfig

from .engine import RequestError
from .media import too_large_image

# A body beyond its limit is read on to this many times the limit, and thrown away: only then does its client read why.
_TIMES_READ = 8
_SECONDS_FOR_A_BODY = 120
# What begins a JSON value, or stands before it: the reader stops everybody else for about a microsecond at each.
_MARKS = (b"[", b"{", b",")
_MOST_MARKS = 100_000


async def json_body(request: Request, config: ServeConfig) -> bytes:
    """Not parsed yet. Raises RequestError for one that is too large, and about the picture that made it so, if one did.

    Never keeps more than the limit. What is announced to be far too large is refused before it comes.
    """
    _require_json(request)
    max_bytes = int(config.max_body_mb * 1e6)
    too_large = RequestError(f"the body is larger than the {max_bytes} bytes that are taken", status=413)
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > _TIMES_READ * max_bytes:
        raise too_large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(_SECONDS_FOR_A_BODY):
            async for piece in request.stream():
                body += piece[: max_bytes - len(body)]
                size += len(piece)
                if size > _TIMES_READ * max_bytes:
                    raise too_large
    except TimeoutError:
        raise RequestError(f"the body did not come within {_SECONDS_FOR_A_BODY} s", status=408) from None
    _require_few_values(body)
    if size > max_bytes:
        raise await asyncio.to_thread(too_large_image, bytes(body), config) or too_large
    return bytes(body)


def _require_few_values(body: bytearray) -> None:
    """Told by marks, those in texts included; a text of so many commas has as many tokens."""
    marks = sum(map(body.count, _MARKS))
    if marks > _MOST_MARKS:
        message = f"the body has {marks} commas and opening brackets; at most {_MOST_MARKS} are taken"
        raise RequestError(message, status=413)


def _require_json(request: Request) -> None:
    """A browser lets any page send a form or plain text to any server, but asks the server first about JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(f"the Content-Type is '{kind[:60]}'; send 'application/json'", status=415)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise RequestError(f"the Content-Encoding is '{coding[:60]}'; send the body as it is", status=415)
