"""Pictures by URL and hostile ones by data: URL, through the server's routes."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import openai
import pytest
from echo_engine import EchoEngine
from fastapi import FastAPI
from hostile_pictures import REFUSED, encoded, small
from live_server import Serve
from origin import HOSTS, URL, Names, Origin, answer
from PIL import Image
from requests_to_send import client_of, image_part, user

from slimdeploy.config import ServeConfig
from slimdeploy.serve.app import create_app
from slimdeploy.serve.remote_images import PictureFetcher

PICTURE = encoded(Image.new("RGB", (5, 3)))
CHAT = {"model": "echo", "messages": user([image_part(URL)])}
BY_ROUTE: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"model": "echo", "input": user([{"type": "input_image", "image_url": URL}])},
    "/tokenize": {"messages": CHAT["messages"]},
}
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/chat/completions",
    "query_string": b"",
    "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
}
PARAMS = {
    "/v1/chat/completions": "messages[0].content[0].image_url.url",
    "/v1/responses": "input[0].content[0].image_url",
    "/tokenize": "messages[0].content[0].image_url.url",
}


def with_origin(
    origin: Origin, use: Callable[[FastAPI, EchoEngine], Awaitable[Any]], config: ServeConfig | None = None
) -> Any:
    """What comes of using a server that fetches from the origin."""
    config, engine = config or ServeConfig(image_hosts=HOSTS), EchoEngine()

    async def used() -> Any:
        async with origin.listening():
            return await use(create_app(engine, config, PictureFetcher(config, Names(), origin)), engine)

    return asyncio.run(used())


def ask(origin: Origin, body: object, route: str = "/v1/chat/completions") -> httpx.Response:
    async def asked(app: FastAPI, _: EchoEngine) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            return await http.post(route, json=body)

    response: httpx.Response = with_origin(origin, asked)
    return response


def error_of(response: httpx.Response) -> tuple[str, str | None]:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["message"], error["param"]


@pytest.mark.parametrize("route", BY_ROUTE)
def test_a_picture_of_a_listed_host_is_fetched_for_every_route_that_takes_pictures(route: str) -> None:
    response = ask(Origin({"/a.png": answer(PICTURE)}), BY_ROUTE[route], route)
    assert response.status_code == 200
    assert "[5x3]" in response.text or response.json()["count"] == 1


@pytest.mark.parametrize("route", BY_ROUTE)
def test_a_picture_that_cannot_be_fetched_is_named(route: str) -> None:
    message, param = error_of(ask(Origin({"/a.png": answer(b"", status="404 N")}), BY_ROUTE[route], route))
    assert param == PARAMS[route]
    assert message == f"'{param}' could not be fetched; send the picture itself, as a data: URL"


@pytest.mark.parametrize("route", BY_ROUTE)
def test_without_a_list_of_hosts_nothing_is_fetched(serve: Serve, engine: EchoEngine, route: str) -> None:
    message, param = error_of(httpx.post(serve(engine) + route, json=BY_ROUTE[route]))
    assert param == PARAMS[route]
    assert "does not fetch images from other addresses" in message


def test_this_machine_is_not_asked_even_where_it_is_listed(serve: Serve, engine: EchoEngine) -> None:
    url = serve(engine, ServeConfig(image_hosts=("localhost:1",)))
    body = {"model": "echo", "messages": user([image_part("http://localhost:1/a.png")])}
    message, param = error_of(httpx.post(f"{url}/v1/chat/completions", json=body))
    assert message == f"'{param}' could not be fetched; send the picture itself, as a data: URL"


def test_what_a_picture_is_its_bytes_tell_and_not_its_host() -> None:
    told_wrong = Origin({"/a.png": answer(PICTURE, "Content-Type: text/html")})
    assert ask(told_wrong, CHAT).status_code == 200
    page = Origin({"/a.png": answer(b"<html></html>", "Content-Type: image/png")})
    message, param = error_of(ask(page, CHAT))
    assert message == f"'{param}': image is truncated, damaged or not a PNG, JPEG, WebP or GIF"


@pytest.mark.parametrize("case", ["scans", "zTXt", "a header of 60,000 x 60,000", "SVG", "a frame beyond the screen"])
def test_hostile_pictures_are_refused_wherever_they_come_from(case: str) -> None:
    picture = REFUSED[case]()
    message, param = error_of(ask(Origin({"/a.png": answer(picture)}), CHAT))
    assert message.startswith(f"'{param}': image ")


def test_a_picture_that_is_shown_twice_is_fetched_once() -> None:
    origin = Origin({"/a.png": answer(PICTURE)})
    response = ask(origin, {"model": "echo", "messages": user([image_part(URL)] * 3)})
    assert response.json()["choices"][0]["message"]["content"] == "[5x3] [5x3] [5x3]"
    assert len(origin.asked) == 1


def test_too_many_pictures_are_refused_before_one_is_fetched() -> None:
    origin = Origin({"/a.png": answer(PICTURE)})
    message, param = error_of(ask(origin, {"model": "echo", "messages": user([image_part(URL)] * 9)}))
    assert (message, param) == ("the request has 9 images; at most 8 are taken", "messages")
    assert origin.connected == []


def test_a_fetch_ends_when_its_client_goes_away() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        begun.set()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async def leave(app: FastAPI, engine: EchoEngine) -> None:
        came = iter([{"type": "http.request", "body": json.dumps(CHAT).encode()}])
        sent = []

        async def receive() -> Any:
            if (message := next(came, None)) is not None:
                return message
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(SCOPE, receive, send)
        await asyncio.wait_for(ended.wait(), 5)
        assert sent[0]["status"] == 499
        assert engine.requests == []

    with_origin(Origin({"/a.png": slow}), leave)


def test_hostile_pictures_by_data_url_are_refused_and_the_server_goes_on(serve: Serve, engine: EchoEngine) -> None:
    client = client_of(serve(engine))
    for case, make in REFUSED.items():
        url = "data:image/png;base64," + base64.b64encode(make()).decode()
        with pytest.raises(openai.BadRequestError, match=r"image (has|is) ") as caught:
            client.chat.completions.create(model="echo", messages=user([image_part(url)]))
        assert caught.value.param == "messages[0].content[0].image_url.url", case
    url = "data:image/png;base64," + base64.b64encode(small("PNG")).decode()
    assert client.chat.completions.create(model="echo", messages=user([image_part(url)]))
