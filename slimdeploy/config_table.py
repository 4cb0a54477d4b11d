"""What the tables of deploy.toml are made of: the table itself, and numbers within bounds."""

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

# Share of removed weights; at 1 a layer would be nothing but zeros.
Share = Annotated[float, Field(ge=0, lt=1)]
Stage = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=10)]


def _eta(value: object) -> object:
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf):
        return value
    raise ValueError(f"{value!r} is neither 'auto' nor a number from 0 on")


Eta = Annotated[float | Literal["auto"], PlainValidator(_eta)]


def _pattern(value: str) -> str:
    parts = re.fullmatch(r"(?P<kept>[1-9]\d*|\*):(?P<group>[1-9]\d*)", value)
    if value != "unstructured" and not parts:
        raise ValueError(f"'{value}' is no pattern; write 'unstructured', N:M with 1 <= N <= M, or '*:M'")
    if parts and parts["kept"] != "*" and int(parts["kept"]) > int(parts["group"]):
        raise ValueError(f"'{value}' keeps more weights than a group has; write N:M with N <= M")
    return value


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", value):
        raise ValueError(f"'{value}' is no origin; write 'https://example.org', with a port if need be, or '*'")
    return value.lower()  # as browsers send it


Origin = Annotated[str, AfterValidator(_origin)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


_LABEL = r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
"""Of DNS, in lower case, letters beyond ASCII as xn--..."""


def _image_host(value: str) -> str:
    host, colon, port = value.lower().partition(":")
    name = host.removeprefix("*.")
    if not HOST_NAME.fullmatch(name) or (name != host and "." not in name):
        raise ValueError(
            f"'{value}' is no host; write its name alone, as 'example.org', '*.example.org' for all below it, or "
            "'example.org:8443', and letters beyond ASCII as 'xn--...'"
        )
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", name.rpartition(".")[2]):
        raise ValueError(f"'{value}' is an address; write the name of a host")
    if colon and not (re.fullmatch(r"[1-9][0-9]{0,4}", port) and int(port) <= 65535):
        raise ValueError(f"'{value}' has no port of 1 to 65535 behind its colon")
    return host + colon + port


ImageHost = Annotated[str, AfterValidator(_image_host)]
"""A host that pictures are fetched from: a name or `*.NAME`, and the port where it is not the scheme's own."""


class Table(BaseModel):
    """One table of deploy.toml: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
