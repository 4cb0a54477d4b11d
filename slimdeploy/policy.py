"""Layer, Level, Policy: what may be pruned, how far, and what that costs. Knows no torch.

Costs are counted exactly: `kept_per_row` is the one place that turns a level into a number of weights, for the budget
as for the masks, so that a policy within its budget gives masks within it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Tower = Literal["vision", "projector", "language"]
"""Where in a model a layer stands; "vision" is the encoder of pictures, or of sounds in a model that hears."""

Values = Literal["", "int8", "int4"]
UNSTRUCTURED = "unstructured"


@dataclass(frozen=True)
class Layer:
    """One prunable weight matrix, (rows, columns) = (out, in)."""

    name: str
    tower: Tower
    rows: int
    columns: int

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Level:
    """How far one matrix is pruned, and what its survivors are stored as.

    sparsity: share of weights removed, 0 to 1. group: M of an N:M pattern, 0 for unstructured. values: "" is whatever
    the export stores.
    """

    sparsity: float
    group: int = 0
    values: Values = ""

    @property
    def pattern(self) -> str:
        return f"{self.kept_per_group}:{self.group}" if self.group else UNSTRUCTURED

    @property
    def kept_per_group(self) -> int:
        """N of an N:M pattern."""
        return round((1 - self.sparsity) * self.group)


DENSE = Level(0.0)


def kept_per_row(columns: int, level: Level) -> int:
    """Weights that every row of a matrix keeps at this level.

    N:M with a remainder block of r columns keeps round(N * r / M) of those.
    """
    if not level.group:
        return columns - round(level.sparsity * columns)
    blocks, rest = divmod(columns, level.group)
    return blocks * level.kept_per_group + round(level.kept_per_group * rest / level.group)


def kept_weights(layer: Layer, level: Level) -> int:
    return layer.rows * kept_per_row(layer.columns, level)


@dataclass(frozen=True)
class Policy:
    """A level for every prunable matrix, by the matrix's name."""

    levels: Mapping[str, Level]

    @property
    def group(self) -> int:
        """M of the N:M patterns among the levels, 0 where there is none."""
        return max((level.group for level in self.levels.values()), default=0)

    def with_level(self, name: str, level: Level) -> "Policy":
        return Policy({**self.levels, name: level})

    def kept(self, layers: Iterable[Layer]) -> int:
        """Weights kept in `layers`."""
        return sum(kept_weights(layer, self.levels[layer.name]) for layer in layers)

    def sparsity(self, layers: Iterable[Layer]) -> float:
        """Share of the weights of `layers` that is removed, 0 to 1."""
        layers = list(layers)
        total = sum(layer.weights for layer in layers)
        return 1 - self.kept(layers) / total if total else 0.0

    def key(self) -> tuple[tuple[str, Level], ...]:
        """Hashable identity, for caches of evaluations."""
        return tuple(sorted(self.levels.items(), key=lambda item: item[0]))

    def to_json(self) -> str:
        levels = {name: asdict(level) for name, level in self.levels.items()}
        return json.dumps({"levels": levels}, indent=1)

    @staticmethod
    def from_json(text: str) -> "Policy":
        return Policy({name: Level(**level) for name, level in json.loads(text)["levels"].items()})


def available_levels(pattern: str, step: float, values: Values = "") -> tuple[Level, ...]:
    """The levels a matrix may take with survivors of one type, dense first, each sparser than the one before.

    "unstructured": every `step` up to 95%; "N:M" (N <= M): dense or N:M; "*:M": N:M for every N from M down to 1.
    """
    dense = Level(0.0, 0, values)
    if pattern == UNSTRUCTURED:
        count = int(0.95 / step + 1e-9)
        return tuple(Level(round(i * step, 6), 0, values) for i in range(count + 1))
    kept, group = pattern.split(":")
    size = int(group)
    if kept == "*":
        return (dense, *(Level(1 - n / size, size, values) for n in range(size - 1, 0, -1)))
    return (dense, Level(1 - int(kept) / size, size, values)) if int(kept) < size else (dense,)


def weight_budget(layers: Iterable[Layer], sparsity: float) -> int:
    """Weights that may stay: the largest number that removes at least a share of `sparsity`."""
    return int((1 - sparsity) * sum(layer.weights for layer in layers) + 1e-6)


def describe(layers: Iterable[Layer], policy: Policy) -> list[dict[str, Any]]:
    """One row per layer for manifests and reports: name, tower, shape, level and weights kept."""
    return [
        asdict(layer)
        | {
            "pattern": policy.levels[layer.name].pattern,
            "values": policy.levels[layer.name].values,
            "sparsity": 1 - kept_weights(layer, policy.levels[layer.name]) / layer.weights,
            "kept": kept_weights(layer, policy.levels[layer.name]),
        }
        for layer in layers
    ]
