"""A cell of the quality benchmark: what is done to the demo model, and the accuracy that is left. Keeps finished ones.

Knows no model and no table.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from slimdeploy import __version__
from slimdeploy.config import BudgetConfig, Config, Criterion, PruneConfig, RestoreConfig, SearchConfig, SearchMethod
from slimdeploy.report import now
from slimdeploy.search import Cost
from slimdeploy.writing import new_file

METHOD_VERSION = 1
"""Part of every key: figures and policies of another one are measured again. To be raised whenever a change in
slimdeploy's pruning, search, restoration, losses, scoring or demo data changes what a cell would give. The sources
themselves are no part of a key, because then every comment would cost hours of measurement.
"""

Restoration = Literal["none", "lora", "sparse_lora"]


@dataclass(frozen=True)
class Setting:
    """What is done to the demo model; cells of equal settings differ by their seed alone. As it stands here: nothing.

    bytes, values: instead of a sparsity, as in [search.budget] and [search]. eta: weight of the search's norm term; as
    the configuration has it where it is None. projector: whether the search evolves it. int3: the dense model's
    matrices are rounded to three bits.
    """

    criterion: Criterion = PruneConfig().criterion
    pattern: str = "unstructured"
    sparsity: float = 0.0
    method: SearchMethod = "uniform"
    restore: Restoration = "none"
    bytes: int = 0
    values: tuple[Literal["int8", "int4"], ...] = ()
    eta: float | None = None
    projector: bool = True
    int3: bool = False

    @property
    def has_seeds(self) -> bool:
        """Whether any sample or any random number has a say."""
        by_weights_alone = (self.criterion, self.method, self.restore) == ("magnitude", "uniform", "none")
        return (self.sparsity > 0 or self.bytes > 0) and not by_weights_alone

    def config(self, base: Config, seed: int) -> Config:
        """`base` with these settings."""
        search: dict[str, Any] = {
            "method": self.method,
            "seed": seed,
            "budget": BudgetConfig(bytes=self.bytes) if self.bytes else BudgetConfig(sparsity=self.sparsity),
        }
        if self.values:
            search["values"] = self.values
        if self.eta is not None:
            search["eta"] = self.eta
        if not self.projector:
            search["projector_steps"] = 0
        return base.model_copy(
            update={
                "prune": PruneConfig(criterion=self.criterion, pattern=self.pattern),
                "search": SearchConfig(**{**dict(base.search), **search}),
                "restore": RestoreConfig(**{**dict(base.restore), "method": self.restore, "seed": seed}),
            }
        )

    def described(self) -> dict[str, Any]:
        """What is not as it stands in the class, for files and for people."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}


DENSE = Setting()
SPARSITY_OF_26_64 = 0.59375


@dataclass(frozen=True)
class Cell:
    """A setting with a seed: the slice of samples that it sees, and the seed of search and restoration."""

    setting: Setting
    seed: int

    def __str__(self) -> str:
        words = [f"{name} {value}" for name, value in self.setting.described().items()]
        return f"{', '.join(words) or 'dense'}; seed {self.seed}"

    def policy_inputs(self, base: Config) -> dict[str, Any]:
        """All that the policy depends on beside the model."""
        config = self.setting.config(base, self.seed)
        search = config.search.model_dump()
        if self.setting.method != "evolution":
            # Formulas read nothing else.
            search = {name: search[name] for name in ("method", "values", "budget")}
        prune = _prune_inputs(config)
        if self.setting.method in ("uniform", "ecoflap"):
            # They ask no criterion, so that all criteria share one policy.
            del prune["criterion"]
        return {"seed": self.seed, "data": config.data.model_dump(), "prune": prune, "search": search}

    def inputs(self, base: Config) -> dict[str, Any]:
        """All that the figure depends on beside the model."""
        config = self.setting.config(base, self.seed)
        return {
            **self.policy_inputs(base),
            "prune": _prune_inputs(config),
            "restore": config.restore.model_dump() if self.setting.restore != "none" else None,
            "int3": self.setting.int3,
            "max_tokens": config.validate_.max_tokens,
        }


def _prune_inputs(config: Config) -> dict[str, Any]:
    """A list that names nothing asks for nothing, so that a setting which is new to slimdeploy ages no figure."""
    return {name: value for name, value in config.prune.model_dump().items() if value != ()}


def key_of(inputs: Mapping[str, Any], model: str) -> str:
    """sha256 of the inputs, the versions and the model's fingerprint."""
    text = json.dumps({"slimdeploy": __version__, "methods": METHOD_VERSION, "model": model, **inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Figure:
    """What was measured for a cell.

    accuracy: 0 to 1. sparsity: share of zeros among the prunable weights. bytes: of the prunable matrices, packed; 0
    where it is not said what they are packed as. chosen: by the search, itself or the uniform policy. eta, costs: of
    the search. seconds: of CPU time, by step; a step that was found ready takes hardly any.
    """

    accuracy: float
    questions: int
    sparsity: float
    bytes: int
    chosen: str
    eta: float
    uniform_validation: float | None
    searched_validation: float | None
    costs: tuple[Cost, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


class FinishedCells:
    """Figures by the key of their cell, in a JSON file that is read and written anew with every one that comes: another
    benchmark may be adding to it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = json.loads(self._file.read_text()) if self._file.is_file() else {}
        return entries

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def figure(self, key: str) -> Figure:
        values = self._entries[key]["figure"]
        return Figure(**{**values, "costs": tuple(Cost(**cost) for cost in values["costs"])})

    def add(self, key: str, cell: Cell, figure: Figure) -> None:
        setting, values = cell.setting.described(), asdict(figure)
        with self._changing():
            self._entries[key] = {"setting": setting, "seed": cell.seed, "date": now(), "figure": values}

    def forget(self, keys: Collection[str]) -> None:
        with self._changing():
            self._entries = {key: entry for key, entry in self._entries.items() if key not in keys}

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The entries as they are in the file by now; what the body makes of them is written."""
        folder = os.open(self._file.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self._entries = self._read()
            yield
            self._write()
        finally:
            os.close(folder)

    def _write(self) -> None:
        lines = (f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in self._entries.items())
        with new_file(self._file) as file:
            file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
