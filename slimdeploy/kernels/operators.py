"""Our operators in onnxruntime: sessions whose options they are registered with multiply packed weights by our kernels.

Any other session runs the same files too: it unpacks every weight to float32 when it loads them. Imports nothing heavy.
"""

from functools import cache
from typing import Any

from ..errors import ConfigError
from .library import instruction_set_in_use, library_file, require_library

DOMAIN = "slimdeploy"
VERSION = 2
"""Of what the operators mean; 2 has GroupQueryAttention. Graphs import the domain at the version they were made for."""
CACHE_ROWS = "cache_rows"
"""An input of decoders that attend by our operator: which rows of the caches the sequences of a batch have; empty: as
many as there are, in order. The caches may have more, and sequences that share a row are pieces of one. Without our
operators it is passed over."""


def register_operators(options: Any) -> None:
    """Register with an onnxruntime.SessionOptions, unless `missing_operators` says that they are not to be had.

    Raises ConfigError where the environment forces a set of kernels that this machine lacks.
    """
    if missing_operators() is None:
        instruction_set_in_use()  # onnxruntime would tell of it layer by layer, in words of its own
        options.register_custom_ops_library(str(library_file()))


@cache
def missing_operators() -> str | None:
    """Why this machine has no kernels, with the remedy; None when it has."""
    try:
        require_library()
    except ConfigError as error:
        return str(error)
    return None


def fallback_note() -> str | None:
    """What it means for packed weights that there are no kernels, in a sentence; None when there are."""
    if (problem := missing_operators()) is None:
        return None
    return f"Packed weights are unpacked to float32 and save neither memory nor time here: {problem.rstrip('.')}."
