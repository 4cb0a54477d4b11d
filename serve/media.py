"""Pictures in a request: data: URLs only, judged by size before they are decoded.

A server that fetched URLs for its clients could be sent to addresses that only it can reach, so this one never does.
"""

import base64
import binascii
import re

from PIL import Image

from slimdeploy.config import ServeConfig
from slimdeploy.errors import DataError
from slimdeploy.images import load_image

from .engine import Message, RequestError, Role
from .protocol import ChatMessage, ChatRequest, Part

_HEADER = re.compile(r"data:image/(png|jpe?g|webp|gif);base64,", re.ASCII | re.IGNORECASE)
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def decode_messages(request: ChatRequest, config: ServeConfig) -> tuple[Message, ...]:
    """The conversation with its pictures decoded. Raises RequestError that names the part to blame."""
    count = sum(part.image_url is not None for message in request.messages for part in message.content)
    if count > config.max_images:
        raise RequestError(f"the request has {count} images; at most {config.max_images} are taken", param="messages")
    return tuple(_decode_message(message, f"messages[{n}]", config) for n, message in enumerate(request.messages))


def _decode_message(message: ChatMessage, name: str, config: ServeConfig) -> Message:
    parts = tuple(_decode_part(part, f"{name}.content[{n}]", config) for n, part in enumerate(message.content))
    return Message(_ROLES[message.role], parts)


def _decode_part(part: Part, name: str, config: ServeConfig) -> str | Image.Image:
    if part.type == "text":
        assert part.text is not None
        return part.text
    assert part.image_url is not None
    return decode_image(part.image_url.url, f"{name}.image_url.url", config)


def decode_image(url: str, param: str, config: ServeConfig) -> Image.Image:
    """Raises RequestError for anything but a data: URL with a picture within the limits."""
    header = _HEADER.match(url)
    if header is None:
        raise RequestError(
            f"'{param}' must be a URL of the form data:image/png;base64,... (or jpeg, webp, gif); this server does not "
            "fetch images from other addresses",
            param=param,
        )
    max_bytes = int(config.max_image_mb * 1e6)
    encoded = url[header.end() :]
    if len(encoded) // 4 * 3 > max_bytes + 2:
        raise RequestError(f"'{param}' is larger than the {config.max_image_mb:g} MB that are taken", param=param)
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"'{param}' is not valid base64", param=param) from None
    try:
        return load_image(decoded, int(config.max_image_megapixels * 1e6))
    except DataError as error:
        raise RequestError(f"'{param}': {error}", param=param) from None
