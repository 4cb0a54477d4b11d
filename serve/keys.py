"""Who may ask: named keys, from a file or from the environment, compared in constant time."""

import hmac
import os
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError

VARIABLE = "SLIMDEPLOY_API_KEYS"
"""Keys as `NAME:KEY`, with commas between them."""
_LEAST = 16
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)
_KEY = re.compile(rf"[!-~]{{{_LEAST},512}}", re.ASCII)


class Keys:
    """digests: of every key, by its name; the keys themselves are not kept."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = dict(digests)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name_of(self, authorization: str) -> str | None:
        """The name of the key in an Authorization header; None for any that is not ours.

        All keys are compared, however early one fits, and digests have one length.
        """
        scheme, _, key = authorization.partition(" ")
        digest = sha256(key.strip().encode()).digest()
        fitting = [name for name, own in self._digests.items() if hmac.compare_digest(digest, own)]
        return fitting[0] if fitting and scheme.lower() == "bearer" else None


def load_keys(config: ServeConfig) -> Keys:
    """Of serve.api_keys_file and of the environment; none where neither names any.

    Raises ServeError for a file that cannot be read and for a line that is no key: it names the line and not the key.
    """
    digests: dict[str, bytes] = {}
    for where, entry in _entries(config):
        name, _, key = entry.partition(":")
        name, key = name.strip(), key.strip()
        if not _NAME.fullmatch(name) or not _KEY.fullmatch(key):
            raise ServeError(
                f"{where} is not NAME:KEY with a key of {_LEAST} to 512 characters without blanks; make one by "
                "`openssl rand -hex 24`"
            )
        if name in digests:
            raise ServeError(f"{where} names '{name}' again; give each key a name of its own")
        digests[name] = sha256(key.encode()).digest()
    return Keys(digests)


def _entries(config: ServeConfig) -> Iterator[tuple[str, str]]:
    """Where each entry stands, and what it says."""
    if config.api_keys_file:
        file = Path(config.api_keys_file)
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(f"serve.api_keys_file = '{file}' cannot be read: {error}") from None
        said = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
        entries = [(f"{file}:{number}", line) for number, line in said if line and not line.startswith("#")]
        if not entries:
            raise ServeError(f"serve.api_keys_file = '{file}' holds no key; write lines NAME:KEY, or leave it unset")
        yield from entries
    for number, entry in enumerate(os.environ.get(VARIABLE, "").split(","), start=1):
        if entry.strip():
            yield f"key {number} of {VARIABLE}", entry
