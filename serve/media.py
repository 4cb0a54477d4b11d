"""Pictures in a request, as data: URLs or fetched by `remote_images`, judged by size and header. None is decoded here.

Sizes come first, of all pictures together: judging one may take as long as decoding it.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import from_json

from slimdeploy.config import ServeConfig
from slimdeploy.errors import DataError
from slimdeploy.images import check_image, pixels_of

from .engine import EncodedImage, Message, RequestError
from .turns import PictureUrl, Turn

if TYPE_CHECKING:
    from .remote_images import PictureFetcher

T = TypeVar("T")
_HEADER = re.compile(r"data:image/(png|jpe?g|webp|gif);base64,", re.ASCII | re.IGNORECASE)
_REMOTE = re.compile("https?:", re.IGNORECASE)
_IMAGE_URL = re.compile(r"(messages|input)\[\d+\]\.content\[\d+\]\.image_url(\.url)?")


async def fetch_pictures(turns: Sequence[Turn], config: ServeConfig, fetcher: "PictureFetcher") -> dict[str, bytes]:
    """Those that are somewhere else, by their URLs. Raises RequestError that names the part to blame."""
    pictures = _pictures(turns, config)
    return await fetcher.fetch_all(
        {picture.url: picture.param for picture in reversed(pictures) if _REMOTE.match(picture.url)}
    )


def read_messages(turns: Sequence[Turn], config: ServeConfig, fetched: Mapping[str, bytes]) -> tuple[Message, ...]:
    """The conversation with its pictures as bytes. Raises RequestError that names the part to blame.

    fetched: pictures by their URLs, where those are no data: URLs.
    """
    urls = _pictures(turns, config)
    encoded = {picture: _encoded(picture, config, fetched) for picture in urls}
    pixels = sum(_judged(pixels_of, encoded[picture]) for picture in urls)
    if pixels > config.max_image_megapixels * 1e6:
        raise RequestError(
            f"the {len(urls)} images have {pixels / 1e6:.1f} megapixels together; at most "
            f"{config.max_image_megapixels:g} are taken in one request",
            param=_field(urls),
        )
    for picture in encoded.values():
        _judged(check_image, picture)
    return tuple(
        Message(turn.role, tuple(part if isinstance(part, str) else encoded[part] for part in turn.parts))
        for turn in turns
    )


def _pictures(turns: Sequence[Turn], config: ServeConfig) -> list[PictureUrl]:
    urls = [part for turn in turns for part in turn.parts if isinstance(part, PictureUrl)]
    if len(urls) > config.max_images:
        message = f"the request has {len(urls)} images; at most {config.max_images} are taken"
        raise RequestError(message, param=_field(urls))
    return urls


def _field(urls: Sequence[PictureUrl]) -> str | None:
    """That of the request which holds them all."""
    return urls[0].param.partition("[")[0] if urls else None


def _judged(judge: Callable[[bytes, int], T], picture: EncodedImage) -> T:
    try:
        return judge(picture.data, picture.max_pixels)
    except DataError as error:
        raise RequestError(f"'{picture.param}': {error}", param=picture.param) from None


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


def _encoded(picture: PictureUrl, config: ServeConfig, fetched: Mapping[str, bytes]) -> EncodedImage:
    """Raises RequestError for anything but a fetched picture and a data: URL within the limit of bytes."""
    url, param = picture.url, picture.param
    data = fetched[url] if url in fetched else _bytes_of(url, param, config)
    return EncodedImage(data, param, int(config.max_image_megapixels * 1e6))


def _bytes_of(url: str, param: str, config: ServeConfig) -> bytes:
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
        return base64.b64decode(url[header.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"'{param}' is not valid base64", param=param) from None


def _size_error(url: str, param: str, config: ServeConfig) -> RequestError | None:
    encoded = len(url) - (url.find(",", 0, 100) + 1)
    if encoded // 4 * 3 <= int(config.max_image_mb * 1e6) + 2:
        return None
    return RequestError(f"'{param}' is larger than the {config.max_image_mb:g} MB that are taken", param=param)


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
