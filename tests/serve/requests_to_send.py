"""What the tests of the server send: clients, messages and pictures."""

import base64
import io
from typing import Any

import httpx
import openai
from PIL import Image

JSON = {"Content-Type": "application/json"}


def client_of(url: str) -> openai.OpenAI:
    """With a connection for each request: of a cycle of objects those that are kept may go before they are closed."""
    connections = httpx.Client(timeout=20, limits=httpx.Limits(max_keepalive_connections=0))
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=connections)


def user(content: object) -> Any:
    return [{"role": "user", "content": content}]


def picture(size: tuple[int, int] = (5, 3), form: str = "png") -> str:
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, form)
    return f"data:image/{form};base64,{base64.b64encode(stream.getvalue()).decode()}"


def bilevel(size: tuple[int, int]) -> str:
    """A PNG of many pixels and few bytes."""
    stream = io.BytesIO()
    Image.new("1", size).save(stream, "png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}
