"""A question that every engine answers before any client's.

What is done once in a process is done then and not on the first client's time, and an artifact that cannot answer is
found before its server is ready.
"""

import io
from contextlib import aclosing

from PIL import Image

from slimdeploy.errors import ServeError

from .engine import EncodedImage, Engine, GenerationRequest, Message, RequestError, greedy

_SIDE = 32
_TOKENS = 2


async def answer_first_question(engine: Engine) -> None:
    """About a picture, as all models are served that see. Raises ServeError for one that cannot."""
    stream = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), "gray").save(stream, "png")
    picture = EncodedImage(stream.getvalue(), "messages[0].content[0]", _SIDE**2)
    request = GenerationRequest((Message("user", (picture, "What is it?")),), greedy(_TOKENS))
    try:
        async with aclosing(engine.generate(request)) as chunks:
            async for _ in chunks:
                pass
    except RequestError as error:
        raise ServeError(f"{engine.model} cannot answer a question about a picture: {error}") from None
