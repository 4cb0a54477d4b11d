"""A small real HTTP server whose answers come with known delays and known faults, in a thread of its own."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

MODELS = b'{"object": "list", "data": [{"id": "fake", "object": "model"}]}'
EVENT_STREAM = "text/event-stream; charset=utf-8"


@dataclass
class Script:
    """What every chat completion is: pieces of the body, each sent after its delay in seconds.

    cut: close the connection after the last piece instead of ending the response. hang: never end it.
    bodies: the requests that came. moments: for each, by time.perf_counter(), its arrival and every piece's departure.
    """

    pieces: list[tuple[float, bytes]]
    status: int = 200
    content_type: str = EVENT_STREAM
    cut: bool = False
    hang: bool = False
    bodies: list[dict[str, object]] = field(default_factory=list)
    moments: list[list[float]] = field(default_factory=list)


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def piece(text: str | None = None, finish: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def usage(tokens_in: int, tokens_out: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}})


DONE = b"data: [DONE]\n\n"


@contextmanager
def serving(script: Script, models: bytes = MODELS) -> Iterator[str]:
    """The server's address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(_start(script, models), loop).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(script: Script, models: bytes) -> asyncio.Server:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for method, body in _requests(reader):
                if method == "GET":
                    writer.write(_head(200, "application/json", f"content-length: {len(models)}") + models)
                    continue
                script.bodies.append(json.loads(body))
                await _answer(script, writer)
                if script.cut:
                    return
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", 0)


async def _stop(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[tuple[str, bytes]]:
    while True:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return
        lengths = [line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
        yield head.split(" ")[0], await reader.readexactly(int(lengths[0])) if lengths else b""


async def _answer(script: Script, writer: asyncio.StreamWriter) -> None:
    writer.write(_head(script.status, script.content_type, "transfer-encoding: chunked"))
    moments = [time.perf_counter()]
    script.moments.append(moments)
    for delay, data in script.pieces:
        if delay:
            await asyncio.sleep(delay)
        moments.append(time.perf_counter())
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await writer.drain()
    if script.hang:
        await asyncio.sleep(3600)
    if not script.cut:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _head(status: int, content_type: str, length: str) -> bytes:
    return f"HTTP/1.1 {status} Said\r\ncontent-type: {content_type}\r\n{length}\r\n\r\n".encode()
