"""A short search on the tiny model, and what judges it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny import make_samples

from slimdeploy.config import BudgetConfig, Config, ExportConfig, OnnxConfig, PruneConfig, SearchConfig
from slimdeploy.model import Model
from slimdeploy.policy import Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import RankedWeights, Stats
from slimdeploy.samples import Sample, Split
from slimdeploy.search.cost import Ledger
from slimdeploy.search.fitness import ModelJudge, PrunedModel
from slimdeploy.search.journal import Journal
from slimdeploy.search.model_search import search_policy
from slimdeploy.search.result import SearchResult
from slimdeploy.search.verdicts import Verdicts

WANDA = PruneConfig(criterion="wanda")
SAMPLES: dict[Split, Sequence[Sample]] = {
    "calibration": make_samples(3),
    "search": make_samples(4, seed=1),
    "validation": make_samples(8, seed=2),
}


def short_search(**settings: Any) -> Config:
    values: dict[str, Any] = {
        "generations": 3,
        "offspring": 4,
        "survivors": 2,
        "budget": BudgetConfig(sparsity=0.5),
    } | settings
    search = SearchConfig(**values)
    onnx = OnnxConfig(weights="packed" if search.budget.bytes else "packed-int8")
    return Config(prune=WANDA, search=search, export=ExportConfig(onnx=onnx))


def run_search(
    model: Model,
    stats: Stats,
    config: Config,
    samples: dict[Split, Sequence[Sample]] = SAMPLES,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    with tempfile.TemporaryDirectory() as folder:
        notes = Journal(journal or Path(folder))
        return search_policy(model, stats, samples, config, progress or Progress.silent(), notes)


def judge_on(model: Model, stats: Stats, *parts: Sequence[Sample]) -> ModelJudge:
    return ModelJudge(PrunedModel(model, RankedWeights(model, WANDA, stats, group=0)), parts)


def verdicts_of(judge: ModelJudge, journal: Path, stages: Sequence[int] = ()) -> Verdicts:
    return Verdicts("test", judge, stages or [sum(judge.samples)], Journal(journal), Ledger())


def uniform(model: Model, level: Level) -> Policy:
    return Policy({layer.name: level for layer in model.layers()})
