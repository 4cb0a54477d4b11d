"""However a picture is sent, fetching it ends: within its limits of bytes and time, and with a word to the client."""

import asyncio
import gzip
import logging
import time
from collections.abc import Callable
from functools import partial

import pytest
from origin import COULD_NOT, HOSTS, PUBLIC, URL, Answer, Names, Origin, answer, fetch, redirect, refusal, serving

from slimdeploy.config import ServeConfig
from slimdeploy.serve.engine import RequestError
from slimdeploy.serve.remote_images import PictureFetcher


async def endless(writer: asyncio.StreamWriter, head: bytes) -> None:
    writer.write(head)
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


async def dripping(writer: asyncio.StreamWriter, sent: bytes) -> None:
    for byte in sent * 100:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def drops(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await dripping(writer, b"x" * 100)


async def silent(_: asyncio.StreamWriter) -> None:
    await asyncio.sleep(10)


async def endless_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        await writer.drain()


LARGER = "'picture' is larger than the 0.1 MB that are taken"
TOO_LARGE: dict[str, Answer] = {
    "by its length": answer(b"x" * 100_001),
    "by a length that is a lie": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx",
    "endless": partial(endless, head=b"HTTP/1.1 200 OK\r\n\r\n"),
    "endless chunks": endless_chunks,
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_a_picture_is_read_to_its_limit_and_no_further(case: str) -> None:
    assert refusal("http://pictures.example/large", serving(large=TOO_LARGE[case]), max_image_mb=0.1) == LARGER


def test_a_picture_of_just_the_limit_is_taken() -> None:
    assert len(fetch("http://pictures.example/a", serving(a=answer(b"x" * 100_000)), max_image_mb=0.1)) == 100_000


def test_pictures_of_a_request_share_the_limit_of_its_body() -> None:
    origin = serving(b=answer(b"x" * 60_000), c=answer(b"x" * 60_000))
    config = ServeConfig(image_hosts=HOSTS, max_image_mb=0.1, max_body_mb=0.1)

    async def fetched() -> None:
        async with origin.listening():
            fetcher = PictureFetcher(config, Names(), origin)
            await fetcher.fetch_all({"http://pictures.example/b": "one"})
            await fetcher.fetch_all({"http://pictures.example/b": "one", "http://pictures.example/c": "other"})

    with pytest.raises(RequestError, match="fetched beside it are larger than the body of a request may be"):
        asyncio.run(fetched())


BROKEN: dict[str, Answer] = {
    "not found": answer(b"a picture", status="404 Not Found"),
    "no content": answer(b"", status="204 No Content"),
    "a part": answer(b"a picture", status="206 Partial Content"),
    "failed": answer(b"a picture", status="500 Internal Server Error"),
    "a redirect to nowhere": answer(b"a picture", status="302 Found"),
    "switching protocols": answer(b"", "Upgrade: websocket", status="101 Switching Protocols"),
    "a gzip bomb": answer(gzip.compress(bytes(10_000_000)), "Content-Encoding: gzip"),
    "gzip twice": answer(b"a picture", "Content-Encoding: identity", "Content-Encoding: gzip"),
    "gzip as transfer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "less than it says": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na picture",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 9\r\n\r\na picture",
    "no length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\na picture",
    "a length of many digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\na picture",
    "a cut chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\na picture",
    "a chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\na picture\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": b"",
    "endless head": partial(endless, head=b"HTTP/1.1 200 OK\r\nX: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_answer_that_is_no_picture_or_breaks_off_is_refused_in_the_same_words(case: str) -> None:
    assert refusal("http://pictures.example/broken", serving(broken=BROKEN[case])) == COULD_NOT


@pytest.mark.parametrize(
    "slow",
    [
        partial(dripping, sent=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100),
        partial(dripping, sent=b"HTTP/1.1 100 Continue\r\n\r\n"),
        silent,
        drops,
    ],
    ids=["head", "informational answers", "nothing", "body"],
)
def test_a_slow_answer_is_given_up_in_time(slow: Callable[[asyncio.StreamWriter], object]) -> None:
    began = time.monotonic()
    assert refusal("http://pictures.example/slow", serving(slow=slow), image_timeout_s=0.3) == COULD_NOT
    assert time.monotonic() - began < 3


def test_redirects_share_one_limit_of_time() -> None:
    async def late(writer: asyncio.StreamWriter, location: str) -> None:
        await asyncio.sleep(0.2)
        writer.write(redirect(location))

    origin = serving(one=partial(late, location="/two"), two=partial(late, location="/a.png"))
    assert fetch("http://pictures.example/one", origin) == b"a picture"
    assert refusal("http://pictures.example/one", origin, image_timeout_s=0.3) == COULD_NOT


def test_a_slow_name_server_is_given_up_in_time() -> None:
    class Never(Names):
        async def __call__(self, _host: str, _port: int) -> list[str]:
            await asyncio.sleep(10)
            return [PUBLIC]

    assert refusal(URL, serving(), Never(), image_timeout_s=0.1) == COULD_NOT


def test_why_a_picture_was_not_fetched_stands_in_the_log_without_its_url(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slimdeploy")
    refusal("http://pictures.example/secret", serving(secret=answer(b"", status="404 Not Found")))
    assert caplog.messages == ["a picture was not fetched: it was answered with status 404"]


def test_pictures_are_fetched_side_by_side_and_a_fault_ends_the_others() -> None:
    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(answer(b"late"))

    origin = Origin({f"/{number}": late for number in range(8)} | {"/silent": silent})
    urls = {f"http://pictures.example/{number}": f"[{number}]" for number in range(8)}
    config = ServeConfig(image_hosts=HOSTS)

    async def fetched() -> tuple[float, float]:
        async with origin.listening():
            fetcher = PictureFetcher(config, Names(), origin)
            began = time.monotonic()
            assert await fetcher.fetch_all(urls) == dict.fromkeys(urls, b"late")
            together = time.monotonic() - began
            with pytest.raises(RequestError) as caught:
                await fetcher.fetch_all({"http://pictures.example/silent": "first", "http://other.example/": "second"})
            assert caught.value.param == "second"
            return together, time.monotonic() - began - together

    together, with_a_fault = asyncio.run(fetched())
    assert together < 2
    assert with_a_fault < 2
