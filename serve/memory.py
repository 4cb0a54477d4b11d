"""How much memory serving an artifact takes, told from its files: nothing is loaded for it but a picture.

Main memory alone, as with serve.onnx.provider = 'cpu'; what CUDA would take of a GPU is not told.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import numpy as np
from PIL import Image

from slimdeploy.artifact import Artifact, Manifest
from slimdeploy.config import ServeConfig
from slimdeploy.doctor import free_memory, most_memory
from slimdeploy.errors import ArtifactError, ServeError
from slimdeploy.kernels.operators import missing_operators
from slimdeploy.layouts import held, packed_matrices
from slimdeploy.packed_tensor import dense_bytes, smallest_bytes

from .engines.onnx_provider import choose_provider
from .engines.onnx_sessions import import_onnxruntime
from .engines.pace import LARGEST_PIECE
from .model_files import TokenLimits, read_facts, read_json
from .pictures import Picture, load_pictures
from .text import Text

log = logging.getLogger(__name__)

_FLOAT = np.dtype(np.float32).itemsize
# What onnxruntime keeps of a block for every token, in rows as wide as the block and as its hidden layer; of attention
# that holds its scores, twice their number. Measured, see benchmarks/README.md.
_ROWS_OF_WIDTH, _HIDDEN_ROWS, _SCORES = 12, 6, 2
# Bytes for every weight at the peak of loading: see exporters/onnx_functions.py.
_UNPACKING = 33
_RGB, _COPIES = 3, 3


@dataclass(frozen=True)
class Need:
    """One thing that takes memory, in bytes. how: it was reckoned."""

    what: str
    bytes: int
    how: str


def total(needs: Iterable[Need]) -> int:
    return sum(need.bytes for need in needs)


def warn_where_too_large(artifact: Artifact, config: ServeConfig) -> None:
    """Log a warning where what lasts is more than the machine has; the rest would be more still."""
    free, lasting = free_memory(), total(lasting_needs(artifact, config))
    if free is not None and lasting > free:
        log.warning(
            "%s: weights and the KV cache of %d requests take up to %.1f GB, and %.1f GB of memory are free; lower "
            "serve.concurrency or take a smaller model (see slimdeploy serve --dry-run)",
            *(artifact.path, config.concurrency, lasting / 1e9, free / 1e9),
        )


def all_needs(artifact: Artifact, config: ServeConfig) -> list[Need]:
    """Raises ServeError for another format and a provider that is not there, ArtifactError for damaged files."""
    if artifact.manifest.format != "onnx":
        raise ServeError(
            f"{artifact.source} has the format '{artifact.manifest.format}', which no engine here serves; "
            "export with export.format = 'onnx'"
        )
    kept = Need("kept for later", int(config.cache_mb * 1e6), "pictures and conversations, at most serve.cache_mb")
    return [*lasting_needs(artifact, config), kept, *passing_needs(artifact, config)]


def lasting_needs(artifact: Artifact, config: ServeConfig) -> list[Need]:
    """What the weights take, and the KV cache of as many requests as are answered at the same time."""
    text, context = _Settings(artifact, "text_config"), _context(artifact, config)
    heads = text["num_attention_heads"]
    size = text.get("head_dim") or text["hidden_size"] // heads
    row = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * size * _FLOAT
    requests = config.concurrency
    return [
        _weights(artifact.manifest),
        Need("KV cache", requests * context * row, f"{requests} requests of {context} tokens of {row:,} bytes"),
    ]


def passing_needs(artifact: Artifact, config: ServeConfig) -> list[Need]:
    """What the program takes, and what requests take while they are read, seen and answered."""
    choose_provider(import_onnxruntime(), config.onnx.provider)  # raises where serving would
    program = most_memory()
    text, context = _Settings(artifact, "text_config"), _context(artifact, config)
    piece = min(context, LARGEST_PIECE)
    prompts = config.concurrency * context * text["hidden_size"] * _FLOAT * (1 + _deepstack(artifact))
    rows = config.concurrency + piece
    picture = _large_picture(artifact, config)
    vision = _Settings(artifact, "vision_config")
    patches = _patches(picture, vision)
    scores = _SCORES * _FLOAT * vision["num_attention_heads", "num_heads"] * sum(count**2 for count in patches)
    per_picture = sum(patches) * _activations(vision) + scores
    pixels = sum(array.nbytes for array in picture.inputs.values())
    return [
        Need("program", program, "Python and its libraries, measured"),
        Need("prompts", prompts, f"{config.concurrency} of {context} tokens, embedded"),
        Need("language model", piece * _activations(text), f"a piece of {piece} tokens at a time"),
        Need("logits", 2 * rows * text["vocab_size"] * _FLOAT, f"of {rows} tokens at a time"),
        Need("vision", per_picture, f"a picture of {sum(patches):,} patches at a time"),
        Need(
            "pictures",
            config.max_images * pixels + int(_COPIES * _RGB * config.max_image_megapixels * 1e6),
            f"{config.max_images} of them prepared, one of {config.max_image_megapixels:g} MP decoded",
        ),
    ]


def _weights(manifest: Manifest) -> Need:
    stored = sum(entry.bytes for name, entry in manifest.files.items() if ".onnx" in name)
    if manifest.verification.get("weights") == "dense-fp16":
        return Need("weights", 2 * stored, "twice the files: the CPU multiplies float32")
    matrices = packed_matrices(manifest)
    if matrices and missing_operators():
        count = sum(matrix.rows * matrix.columns for matrix in matrices)
        return Need("weights", _UNPACKING * count, "unpacked while they are loaded, for there are no kernels")
    zeros = sum(
        dense_bytes(each.rows, each.columns, each.encoding)
        - smallest_bytes(each.rows, each.columns, each.encoding, each.pattern, each.kept)
        for layout in held(matrices)
        if layout.dense
        for each in layout.matrices
    )
    return Need("weights", stored + zeros, "as large as the files" + (", and zeros" if zeros else ""))


def _context(artifact: Artifact, config: ServeConfig) -> int:
    return TokenLimits(total=config.max_total_tokens).within(read_facts(artifact.path).context).total


class _Settings:
    """A part of config.json; a setting that is missing is the artifact's error."""

    def __init__(self, artifact: Artifact, part: str) -> None:
        self._file = artifact.path / "config.json"
        self._values: dict[str, Any] = read_json(self._file).get(part, {})

    def __getitem__(self, names: str | tuple[str, ...]) -> int:
        """Families call one thing by several names."""
        for name in (names,) if isinstance(names, str) else names:
            if isinstance(value := self._values.get(name), int):
                return value
        raise ArtifactError(f"{self._file} has no {names}; export the artifact again")

    def get(self, name: str, default: int = 0) -> int:
        value = self._values.get(name)
        return value if isinstance(value, int) else default


def _deepstack(artifact: Artifact) -> int:
    """Blocks that are given features of pictures beside those in the prompt."""
    vision: dict[str, Any] = read_json(artifact.path / "config.json").get("vision_config", {})
    return len(vision.get("deepstack_visual_indexes") or ())


def _activations(part: _Settings) -> int:
    """Bytes for every token, or patch."""
    return _FLOAT * (_ROWS_OF_WIDTH * part["hidden_size"] + _HIDDEN_ROWS * part["intermediate_size"])


def _large_picture(artifact: Artifact, config: ServeConfig) -> Picture:
    """A square as large as the server takes them, prepared."""
    text = Text(artifact.path)
    side = max(isqrt(int(config.max_image_megapixels * 1e6)), 1)
    pictures = load_pictures(artifact.path, read_facts(artifact.path).family, text)
    return pictures.prepare(Image.new("RGB", (side, side)))


def _patches(picture: Picture, vision: _Settings) -> list[int]:
    """In each of the tiles that a picture is cut into."""
    pixels = picture.inputs["pixel_values"]
    values = vision.get("num_channels", 3) * vision["patch_size"] ** 2 * vision.get("temporal_patch_size", 1)
    tiles = prod(pixels.shape[:-3])  # none in families whose pixels come as rows of patches
    return [pixels.size // values // tiles] * tiles
