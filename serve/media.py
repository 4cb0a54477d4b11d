"""Pictures in a request: data: URLs only, judged by size and header. Nothing is decoded here.

A server that fetched URLs for its clients could be sent to addresses that only it can reach, so this one never does.
"""

import base64
import binascii
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from pydantic_core import from_json

from slimdeploy.config import ServeConfig
from slimdeploy.errors import DataError
from slimdeploy.images import FORMATS, check_image

from .engine import EncodedImage, Message, RequestError
from .turns import PictureUrl, Turn

_HEADER = re.compile(r"data:image/(png|jpe?g|webp|gif);base64,", re.ASCII | re.IGNORECASE)
_IMAGE_URL = re.compile(r"(messages|input)\[\d+\]\.content\[\d+\]\.image_url(\.url)?")


def read_messages(turns: Sequence[Turn], config: ServeConfig) -> tuple[Message, ...]:
    """The conversation with its pictures as bytes. Raises RequestError that names the part to blame."""
    urls = [part for turn in turns for part in turn.parts if isinstance(part, PictureUrl)]
    param = urls[0].param.partition("[")[0] if urls else None
    if len(urls) > config.max_images:
        raise RequestError(f"the request has {len(urls)} images; at most {config.max_images} are taken", param=param)
    messages = tuple(Message(turn.role, tuple(_read_part(part, config) for part in turn.parts)) for turn in turns)
    pictures = [part for message in messages for part in message.parts if isinstance(part, EncodedImage)]
    pixels = sum(_pixels(picture) for picture in pictures)
    if pixels > config.max_image_megapixels * 1e6:
        raise RequestError(
            f"the {len(urls)} images have {pixels / 1e6:.1f} megapixels together; at most "
            f"{config.max_image_megapixels:g} are taken in one request",
            param=param,
        )
    return messages


def _read_part(part: str | PictureUrl, config: ServeConfig) -> str | EncodedImage:
    return part if isinstance(part, str) else read_image(part.url, part.param, config)


def too_large_image(start_of_body: bytes, config: ServeConfig) -> RequestError | None:
    """About the first picture beyond its limit, in a body that was too large to be kept whole."""
    try:
        values = from_json(start_of_body, allow_partial="trailing-strings")
    except ValueError:
        return None
    for param, url in _texts(values, ""):
        if _IMAGE_URL.fullmatch(param) and (error := _size_error(url, param, config)):
            return error
    return None


def read_image(url: str, param: str, config: ServeConfig) -> EncodedImage:
    """Raises RequestError for anything but a data: URL with a picture within the limits, by its header."""
    header = _HEADER.match(url)
    if header is None:
        raise RequestError(
            f"'{param}' must be a URL of the form data:image/png;base64,... (or jpeg, webp, gif); this server does not "
            "fetch images from other addresses",
            param=param,
        )
    if too_large := _size_error(url, param, config):
        raise too_large
    try:
        data = base64.b64decode(url[header.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"'{param}' is not valid base64", param=param) from None
    image = EncodedImage(data, param, int(config.max_image_megapixels * 1e6))
    try:
        check_image(image.data, image.max_pixels)
    except DataError as error:
        raise RequestError(f"'{param}': {error}", param=param) from None
    return image


def _size_error(url: str, param: str, config: ServeConfig) -> RequestError | None:
    encoded = len(url) - (url.find(",", 0, 100) + 1)
    if encoded // 4 * 3 <= int(config.max_image_mb * 1e6) + 2:
        return None
    return RequestError(f"'{param}' is larger than the {config.max_image_mb:g} MB that are taken", param=param)


def _pixels(picture: EncodedImage) -> int:
    with Image.open(io.BytesIO(picture.data), formats=FORMATS) as image:
        return image.width * image.height


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text of a JSON value, with its path as error messages write it."""
    match value:
        case str():
            yield path, value
        case list():
            for number, inner in enumerate(value):
                yield from _texts(inner, f"{path}[{number}]")
        case dict():
            for key, inner in value.items():
                yield from _texts(inner, f"{path}.{key}" if path else key)
