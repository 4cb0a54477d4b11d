"""A question that every engine answers before any client's.

What is done once in a process is done then and not on the first client's time, and an artifact that cannot answer is
found before its server is ready.
"""

import io
from contextlib import aclosing

from PIL import Image

from slimdeploy.errors import ServeError

from .engine import EncodedImage, Engine, GenerationRequest, Message, RequestError, greedy

_TEXT = "What is it?"
_SIDE = 32
_TOKENS = 2


async def answer_first_question(engine: Engine) -> None:
    """Of text, because a picture takes seconds; of models that answer nothing else, about a picture.

    Raises ServeError for one that cannot.
    """
    try:
        await _ask(engine, Message("user", (_TEXT,)))
    except RequestError:
        try:
            await _ask(engine, Message("user", (_gray_picture(), _TEXT)))
        except RequestError as error:
            raise ServeError(f"{engine.model} cannot answer a first question: {error}") from None


async def _ask(engine: Engine, message: Message) -> None:
    async with aclosing(engine.generate(GenerationRequest((message,), greedy(_TOKENS)))) as chunks:
        async for _ in chunks:
            pass


def _gray_picture() -> EncodedImage:
    stream = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), "gray").save(stream, "png")
    return EncodedImage(stream.getvalue(), "messages[0].content[0]", _SIDE**2)
