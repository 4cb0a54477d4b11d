"""The cases that kernels are checked on: every encoding, pattern, batch size and odd shape, small; and their file.

The file is what tests/kernels/native reads (vectors.h says what is in it).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from packed_weights import ENCODINGS, PATTERNS, random_mask, random_weight

from slimdeploy.kernels import reference
from slimdeploy.packed import Encoding, PackedTensor, pack
from slimdeploy.packed_tensor import block_counts

BATCHES = (1, 2, 3, 4, 7, 8, 16, 17, 64, 577)
COLUMNS = (1, 63, 65, 255, 4100)
ROWS = (1, 3)
MANY_ROWS = 4097
TOLERANCE = 1e-5
AMX_BF16_TOLERANCE = 5e-3
_VALUE_TYPES = ("bf16", "fp16", "int8", "int4")


@dataclass(frozen=True)
class Case:
    """A packed weight, the input it is multiplied with, and what comes out in float64.

    x: (at least the largest batch, columns); a batch of n is its first n rows. y: (largest batch, rows).
    """

    packed: PackedTensor
    x: NDArray[np.float32]
    y: NDArray[np.float64]
    batches: tuple[int, ...]

    def __str__(self) -> str:
        packed = self.packed
        encoding = f"{packed.encoding.values}-{packed.encoding.group}"
        return f"{encoding} {packed.pattern} {packed.rows} x {packed.columns}"


def inputs() -> dict[str, NDArray[np.float32]]:
    """By name: one for every number of columns, and one whose rows hold NaN, infinities, zeros and tiny numbers."""
    rng = np.random.default_rng(7)
    made = {str(columns): _activations(rng, BATCHES[-1], columns) for columns in COLUMNS}
    odd = _activations(rng, 24, 255)
    odd[1, 17], odd[3, 0], odd[6, 254] = np.nan, np.inf, -np.inf
    odd[7, 3:9] = np.nan, np.inf, -np.inf, np.nan, np.nan, np.inf
    odd[10] = 0
    odd[12] *= np.float32(1e-35)
    odd[13] *= np.float32(1e33)
    odd[20, 200] = np.nan
    return made | {"odd": odd}


def cases(given: dict[str, NDArray[np.float32]]) -> Iterator[tuple[str, Case]]:
    """Each case with the name of its input."""
    rng = np.random.default_rng(8)
    for encoding in ENCODINGS:
        for pattern in PATTERNS:
            for columns in COLUMNS:
                for rows in ROWS:
                    # The largest batch takes long to emulate.
                    short = columns > 1000 and (rows == 1 or pattern not in ("unstructured", "32:64", "dense"))
                    batches = BATCHES[:-1] if short else BATCHES
                    yield str(columns), _case(rng, encoding, pattern, rows, given[str(columns)], batches)
        # The first is large enough for several threads.
        for pattern, columns in (("unstructured", 255), ("26:64", 65), ("dense", 1)):
            x = given[str(columns)]
            yield str(columns), _case(rng, encoding, pattern, MANY_ROWS, x, (1, 2, 4, 8, 17))
        for pattern in ("unstructured", "dense"):
            yield "odd", _case(rng, encoding, pattern, 35, given["odd"], (1, 2, 4, 8, 24))
        # Kernels with activations + 128 have to subtract many times the result here.
        for pattern in ("unstructured", "dense"):
            for make in (_of_one_sign, _of_one_sign_by_halves):
                yield "4100", _case(rng, encoding, pattern, 3, given["4100"], (1, 4, 8, 64), make)


def _activations(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """Of different sizes, some of the columns large, as activations of language models are."""
    x = rng.standard_normal((rows, columns)) * rng.lognormal(0, 1, (rows, 1)) * rng.lognormal(0, 0.5, columns)
    return x.astype(np.float32)


def _case(
    rng: np.random.Generator,
    encoding: Encoding,
    pattern: str,
    rows: int,
    x: NDArray[np.float32],
    batches: tuple[int, ...],
    make: Callable[[np.random.Generator, NDArray[np.bool_]], NDArray[np.float32]] = random_weight,
) -> Case:
    while True:
        mask = random_mask(rng, rows, x.shape[1], pattern)
        weight = make(rng, mask)
        packed = pack(weight, encoding, pattern, mask)
        y = reference.linear(packed, x[: max(batches)])
        # A single result that happens to cancel tells nothing of a kernel.
        if (
            not np.linalg.norm(y[0])
            < 0.3 * np.sqrt(x[0].astype(np.float64) ** 2 @ weight.T.astype(np.float64) ** 2).max()
        ):
            return Case(packed, x, y, batches)


def _of_one_sign(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.abs(random_weight(rng, mask))


def _of_one_sign_by_halves(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Large and positive in the first half of the columns, small and negative in the second: their scales differ."""
    halves = np.where(np.arange(mask.shape[1]) < mask.shape[1] // 2, 1, -1 / 1024)
    return (mask * rng.uniform(0.8, 1, mask.shape) * halves).astype(np.float32)


def write_vectors(path: Path) -> None:
    """Everything above into the file that the native driver reads."""
    given = inputs()
    places = {name: place for place, name in enumerate(given)}
    with path.open("wb") as file:
        file.write(b"SDVEC001" + _numbers(len(given)))
        for x in given.values():
            file.write(_numbers(*x.shape) + x.tobytes())
        for name, case in cases(given):
            packed = case.packed
            kept, block = block_counts(packed.pattern) or (0, 0)
            values = _VALUE_TYPES.index(packed.encoding.values)
            file.write(
                _numbers(packed.rows, packed.columns, values, packed.encoding.group, kept, block, places[name])
                + _numbers(len(case.batches), *case.batches)
            )
            counts = (packed.mask.size, packed.kept, packed.scales.size)
            for array, count in zip((packed.mask, packed.values, packed.scales), counts, strict=True):
                file.write(_numbers(count, array.nbytes) + array.tobytes())
            file.write(case.y.tobytes())


def _numbers(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()
