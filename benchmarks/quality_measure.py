"""Measures one cell of the quality benchmark. What several cells need is made once and kept in a folder.

Knows no table. Every process reads the samples once; the model is loaded for every cell, because cells change it.
"""

import fcntl
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from quality_cells import Cell, Figure, key_of

from slimdeploy.config import Config
from slimdeploy.data import load_samples
from slimdeploy.evaluate import greedy_answers
from slimdeploy.model import Model, load_model
from slimdeploy.progress import Progress
from slimdeploy.prune import Pruning, Stats, collect_stats, prune, set_weights
from slimdeploy.restore import restore
from slimdeploy.samples import SPLITS, Sample, Split
from slimdeploy.scoring import score
from slimdeploy.search.journal import Journal
from slimdeploy.search.model_search import search_policy
from slimdeploy.search.result import SearchResult
from slimdeploy.search.space import stored_bytes
from slimdeploy.writing import new_file, new_folder

SEEDS = 5
"""Every seed has a slice of its own of the samples that statistics and searches look at."""

_OWN_SLICE: tuple[Split, ...] = ("calibration", "search", "validation")
_INT3_LARGEST, _INT3_GROUP = 3, 128
# Where the largest weight of a group may land on the codes, which end at 3; beyond, it is clipped.
_INT3_PLACES = np.linspace(2.25, 5.0, 23, dtype=np.float32)

Samples = dict[Split, list[Sample]]


@dataclass(frozen=True)
class Workshop:
    """base: the settings that cells share. folder: what is made on the way. model: fingerprint of the checkpoint."""

    base: Config
    folder: Path
    model: str

    def config(self, cell: Cell) -> Config:
        return cell.setting.config(self.base, cell.seed)

    def key(self, cell: Cell) -> str:
        return key_of(cell.inputs(self.base), self.model)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Stopwatch:
    """CPU time of this process, in seconds: it has one thread, and others may be at work beside it."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[step] = round(time.process_time() - began, 2)


def measure(cell: Cell, workshop: Workshop) -> Figure:
    """Find the policy, prune, restore, and ask the questions of the test split."""
    config, watch = workshop.config(cell), Stopwatch()
    samples = samples_of(cell, workshop)
    model = load_model(config.model.path)
    with watch.timed("statistics"):
        stats = statistics(cell, workshop, model, samples)
    with watch.timed("policy"):
        found = policy(cell, workshop, model, samples, stats)
    with watch.timed("pruning and restoration"):
        model = compress(model, config, found, stats, samples)
        if cell.setting.int3:
            round_to_int3(model)
    with watch.timed("answers"):
        data, limit = config.data, config.validate_.max_tokens
        answers = greedy_answers(model, samples["test"], limit, data.batch_size, Progress.silent())
    accuracy = score(samples["test"], answers)
    layers = model.layers()
    levels = [(layer, found.policy.levels[layer.name]) for layer in layers]
    return Figure(
        accuracy=accuracy.value,
        questions=accuracy.count,
        sparsity=found.policy.sparsity(layers),
        bytes=sum(stored_bytes(layer, level) for layer, level in levels if level.values),
        chosen=found.chosen,
        eta=found.eta,
        uniform_validation=found.uniform_validation,
        searched_validation=found.searched_validation,
        costs=found.costs,
        seconds=watch.seconds,
    )


def statistics(cell: Cell, workshop: Workshop, model: Model, samples: Samples) -> Stats:
    config = workshop.config(cell)
    criterion, data = config.prune.criterion, config.data

    def make(folder: Path) -> None:
        collect_stats(model, samples["calibration"], criterion, data.batch_size, Progress.silent()).save(folder)

    inputs = {"criterion": criterion, "data": data.model_dump(), "seed": cell.seed}
    return Stats.load(made_once(workshop.folder / "statistics" / key_of(inputs, workshop.model), make))


def policy(cell: Cell, workshop: Workshop, model: Model, samples: Samples, stats: Stats) -> SearchResult:
    """The model is left dense. A search that was stopped goes on where it was."""
    config = workshop.config(cell)
    key = key_of(cell.policy_inputs(workshop.base), workshop.model)

    def make(folder: Path) -> None:
        notes = workshop.folder / "journals" / key
        notes.mkdir(parents=True, exist_ok=True)
        search_policy(model, stats, samples, config, Progress.silent(), Journal(notes)).save(folder)
        shutil.rmtree(notes)

    return SearchResult.load(made_once(workshop.folder / "policies" / key, make))


def compress(model: Model, config: Config, found: SearchResult, stats: Stats, samples: Samples) -> Model:
    """Prune in place; where restoration is asked for, the model that it makes of another dense one."""
    progress = Progress.silent()
    how = Pruning(config.prune, samples["calibration"], config.data.batch_size, progress)
    pruned = prune(model, found.policy, stats, how, evolve=lambda: found.apply_projector(model))
    if config.restore.method == "none":
        return model
    restored = load_model(config.model.path)
    found.apply_projector(restored)
    restore(restored, pruned.masks, samples["train"], config.restore, progress, pruned.weights)
    return restored


def round_to_int3(model: Model) -> None:
    """All prunable matrices, to the nearest of seven values per group."""
    weights = {layer.name: model.linear(layer.name).weight.detach().numpy() for layer in model.layers()}
    set_weights(model, {name: torch.from_numpy(rounded_to_int3(weight)) for name, weight in weights.items()})


def rounded_to_int3(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """weight: (out, in), `in` a multiple of the group. Of several scales the one of least squared error per group."""
    grouped = weight.reshape(len(weight), -1, _INT3_GROUP)
    top = np.maximum(np.abs(grouped).max(axis=2, keepdims=True), np.float32(1e-30))
    best, least = np.zeros_like(grouped), np.full_like(top, np.inf)
    for place in _INT3_PLACES:
        scale = top / place
        tried = np.clip(np.rint(grouped / scale), -_INT3_LARGEST, _INT3_LARGEST) * scale
        error = np.square(tried - grouped).sum(axis=2, keepdims=True)
        best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return best.reshape(weight.shape)


def samples_of(cell: Cell, workshop: Workshop) -> Samples:
    """What the cell may see. Training samples and questions are the same for all, so that differences are paired."""
    everything = _drawn(workshop)
    counts = workshop.base.data
    own = {
        split: everything[split][cell.seed * getattr(counts, split) :][: getattr(counts, split)] for split in _OWN_SLICE
    }
    return everything | own


def _drawn(workshop: Workshop) -> Samples:
    """Samples for all seeds. Drawing the pictures takes longer than some cells."""
    data = workshop.base.data
    counts = data.model_copy(update={split: SEEDS * getattr(data, split) for split in _OWN_SLICE})

    def make(folder: Path) -> None:
        with new_file(folder / "samples.pickle") as file:
            file.write_bytes(pickle.dumps(load_samples(counts, SPLITS)))

    folder = made_once(workshop.folder / "samples" / key_of(counts.model_dump(), workshop.model), make)
    return dict(_unpickled(folder / "samples.pickle"))


@cache
def _unpickled(file: Path) -> Samples:
    samples: Samples = pickle.loads(file.read_bytes())
    return samples


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills. The process that comes first does it; others that need it wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with new_folder(folder) as aside:
                make(aside)
    return folder
