"""What the tests of the server send: clients, messages and pictures."""

import base64
import io
from typing import Any

import openai
from PIL import Image

JSON = {"Content-Type": "application/json"}


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)


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
