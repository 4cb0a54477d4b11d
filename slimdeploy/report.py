"""The report: everything that was decided and measured in one run, as a frozen tree and as report.json.

What was not measured is None (null in the file), never a made-up value. `report_html` draws the same tree.
"""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from .comparison import Comparison
from .config import SearchMethod
from .doctor import cores, cpu_name
from .errors import ValidateError
from .measurements import Run, latency_table
from .metrics import credit
from .samples import Sample
from .scoring import Accuracy
from .targets import TargetResult
from .writing import new_file

REPORT_VERSION = 2
REPORT_FILES = ("report.json", "report.html")
Stage = Literal["dense", "pruned", "restored", "artifact"]
STAGES: tuple[Stage, ...] = get_args(Stage)
_MISTAKES_SHOWN = 12


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk: of the checkpoint that it all began with, and of the artifact."""

    dense: int | None = None
    artifact: int | None = None


@dataclass(frozen=True)
class LayerSparsity:
    """What the policy left of one matrix: (rows, columns) = (out, in); sparsity: share removed, 0 to 1.

    values: what it is stored as, where the policy chose it.
    """

    name: str
    tower: str
    rows: int
    columns: int
    sparsity: float
    pattern: str
    values: str = ""


@dataclass(frozen=True)
class SearchHistory:
    """The objective J (lower is better) of the best candidate after each generation, and of the best uniform policy.

    validation_*: J on held-out samples, which decided what was `chosen`. accepted: generations after which an evolved
    projector was. eta: weight of the norm term; eta_chosen: the generation after which it was, 0 where it was set.
    correlations: how well J ranks with each eta that was tried. cost: of the whole search, in words.
    """

    best: tuple[float, ...]
    uniform: tuple[float, ...]
    chosen: SearchMethod
    validation_uniform: float | None = None
    validation_searched: float | None = None
    accepted: tuple[int, ...] = ()
    eta: float = 0.0
    eta_chosen: int = 0
    correlations: tuple[tuple[float, float], ...] = ()
    cost: str = ""


@dataclass(frozen=True)
class Loss:
    """Training loss of restoration at one step."""

    step: int
    loss: float


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    cpu: str
    cores: int
    system: str


@dataclass(frozen=True)
class Mistake:
    """An answer through the endpoint that was counted as wrong."""

    sample_id: str
    question: str
    expected: str
    answer: str


@dataclass(frozen=True)
class Report:
    """One run. created: ISO 8601, UTC. command: the line that measured it.

    accuracy: on the test split; "artifact" is what the endpoint answered. agreement: share of equal greedy answers by
    pair, such as "torch_onnx". notes: sentences on everything that is not as one would expect, each fallback included.
    """

    model: str
    command: str
    created: str
    machine: Machine
    versions: Mapping[str, str]
    accuracy: Mapping[Stage, Accuracy | None] = field(default_factory=dict)
    size_bytes: Sizes = field(default_factory=Sizes)
    targets: tuple[TargetResult, ...] = ()
    run: Run | None = None
    agreement: Mapping[str, float] | None = None
    comparison: Comparison | None = None
    policy: tuple[LayerSparsity, ...] | None = None
    search: SearchHistory | None = None
    restoration: tuple[Loss, ...] | None = None
    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = ()
    version: int = REPORT_VERSION

    @property
    def met(self) -> bool:
        """Whether no target was missed."""
        return all(target.met for target in self.targets)


def this_machine() -> Machine:
    return Machine(cpu_name(), cores(), f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def first_mistakes(samples: Sequence[Sample], answers: Sequence[str | None]) -> tuple[Mistake, ...]:
    """A few wrong answers, for a reader's own judgement; failed requests are left out."""
    wrong = (
        Mistake(sample.id, sample.question, " / ".join(sample.answers), answer)
        for sample, answer in zip(samples, answers, strict=True)
        if answer is not None and not credit(sample, answer)
    )
    return tuple(mistake for mistake, _ in zip(wrong, range(_MISTAKES_SHOWN), strict=False))


def to_json(report: Report) -> dict[str, Any]:
    """The tree as JSON values. Beside it stand figures that follow from it, for those who only read the file:

    accuracy as plain shares with accuracy_standard_error and accuracy_by_kind, latency_ms, throughput.
    """
    tree = dataclasses.asdict(report)
    stages = {stage: report.accuracy.get(stage) for stage in STAGES}
    run = report.run
    return {
        "version": report.version,
        "met": report.met,
        "accuracy": {stage: found and found.value for stage, found in stages.items()},
        "accuracy_standard_error": {stage: found and found.standard_error for stage, found in stages.items()},
        "accuracy_by_kind": {
            stage: found and {kind: share.value for kind, share in found.by_kind.items()}
            for stage, found in stages.items()
        },
        "size_bytes": tree["size_bytes"],
        "targets": tree["targets"],
        "latency_ms": run and latency_table(run),
        "throughput_tokens_per_s": run and run.throughput,
        "requests_per_s": run and run.requests_per_second,
        "errors": run and run.errors,
        **{key: value for key, value in tree.items() if key != "accuracy"} | {"accuracy_detail": tree["accuracy"]},
    }


def from_json(values: Any, name: str = "report") -> Report:
    """Raises ValidateError when `values` is no report, or one of another version."""
    version = values.get("version") if isinstance(values, dict) else None
    if version != REPORT_VERSION:
        raise ValidateError(f"{name} is of version {version}, this slimdeploy reads {REPORT_VERSION}; validate again")
    try:
        return TypeAdapter(Report).validate_python(values | {"accuracy": values.get("accuracy_detail")})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValidateError(f"{name} is not a report: {place}: {first['msg']}; validate again") from None


def write_json(report: Report, path: Path) -> None:
    """The whole file or, when the disk is full, nothing new; raises ArtifactError."""
    with new_file(path) as file:
        file.write_text(json.dumps(to_json(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Report:
    """Raises ValidateError when the file is missing or no report."""
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise ValidateError(f"{path} cannot be read as a report: {error}; `slimdeploy validate` writes one") from None
