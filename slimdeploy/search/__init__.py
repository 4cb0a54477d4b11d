"""The policy search: how much of each weight matrix goes, so that the whole meets its budget and loses least."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from typing import Literal, assert_never

from ..config import Config
from ..errors import PruneError
from ..model import Model
from ..policy import DENSE, Policy
from ..progress import Progress
from ..prune import RankedWeights, SolvedWeights, Stats, dense_curvatures, solved_bytes
from ..samples import Sample, Split
from .allocation import ecoflap, language_only, owl
from .cost import Cost, Ledger, in_words
from .eta import EtaChoice, Ranking
from .evolution import Change, Generation, Outcome, Plan, evolve
from .fitness import Judge, ModelJudge, PrunedModel
from .journal import Journal
from .out_of_core import StreamedJudge
from .projector import ProjectorEvolution
from .result import SearchResult
from .sensitivity import outlier_shares, zeroth_order_scores
from .space import Space, search_space
from .verdicts import Verdicts

__all__ = ["Cost", "Generation", "Journal", "Outcome", "Ranking", "SearchResult", "Space", "search_policy"]

Formula = Literal["uniform", "language", "owl", "ecoflap"]

# Samples per forward pass at most. They are also the folds that eta is chosen on.
_BATCH = 16
# By then some dozens of policies have been judged on all samples, and most of the search is still to come.
_ETA_AFTER = 5


def search_policy(
    model: Model,
    stats: Stats,
    samples: Mapping[Split, Sequence[Sample]],
    config: Config,
    progress: Progress,
    journal: Journal,
) -> SearchResult:
    """The best policy within `search.budget`, and the uniform one where that is better on held-out samples.

    samples: `search` to search on, `validation` to judge on, `calibration` for SparseGPT. The model comes dense and is
    left dense, by errors too. Other methods than "evolution" follow a formula and judge nothing. With the journal of a
    search that was killed, given the same arguments, this one goes on where that one was.
    Deterministic: equal inputs and seeds give equal results. Raises PruneError where the budget cannot be met.
    """
    space, ledger = search_space(model.layers(), config), Ledger()
    if not config.search.budget.binds:
        return SearchResult(space.policy(DENSE), "uniform", 0.0, 0.0)

    def by_formula(formula: Formula) -> Policy:
        sparsity = config.search.budget.sparsity
        match formula:
            case "uniform":
                return space.uniforms()[0]
            case "language":
                return language_only(space)
            case "owl":
                return owl(space, sparsity, outlier_shares(model, stats))
            case "ecoflap":
                if (noted := journal.recall("ecoflap")) is None:
                    scores, cost = zeroth_order_scores(model, samples["search"], config.search.seed, progress)
                    noted = {"scores": scores, "cost": asdict(cost)}
                    journal.note("ecoflap", noted)
                ledger.add(**noted["cost"])
                return ecoflap(space, sparsity, noted["scores"])
            case _:
                assert_never(formula)

    method = config.search.method
    if method != "evolution":
        policy = by_formula(method)
        return SearchResult(policy, method, 0.0, 0.0, costs=ledger.costs())
    starts = [by_formula(formula) for formula in _starts(model, samples["search"], config, progress)]
    return _search(model, stats, samples, config, progress, space, journal, ledger, starts)


def _starts(
    model: Model, samples: Sequence[Sample], config: Config, progress: Progress
) -> Sequence[Literal["owl", "ecoflap"]]:
    """The formulas of `search.start` that can be computed here; says which cannot, and why."""
    if config.search.budget.bytes:
        return ()  # as the setting's description says: they are about sparsities
    hindrance = ""
    if model.streamed:
        hindrance = "a model that stays on disk would be read for each of its matrices"
    elif not any(sample.answers for sample in samples):
        hindrance = "no search sample has an answer"
    if hindrance and "ecoflap" in config.search.start:
        progress.say(f"the search does not start from ECoFLaP's policy as well: {hindrance}")
    return [formula for formula in config.search.start if formula != "ecoflap" or not hindrance]


def _search(
    model: Model,
    stats: Stats,
    samples: Mapping[Split, Sequence[Sample]],
    config: Config,
    progress: Progress,
    space: Space,
    journal: Journal,
    ledger: Ledger,
    starts: Sequence[Policy],
) -> SearchResult:
    settings = config.search
    judge_on = _judges(model, config, stats, samples, space, progress, ledger)
    search, held_out, final = _parts(samples)
    # While the model is dense: a judge notes what the dense model says about its samples.
    ends = _ends(settings.stages, len(search))
    judge = judge_on([part for start, end in pairwise([0, *ends]) for part in _batches(search[start:end])])
    fitness = Verdicts("search", judge, ends, journal, ledger)
    accept, decide = (
        Verdicts(name, judge_on(_batches(part)), [len(part)], journal, ledger)
        for name, part in (("projector", held_out), ("held-out", final))
    )
    eta = EtaChoice(settings.eta, min(_ETA_AFTER, settings.generations), (fitness, accept, decide))
    projector = ProjectorEvolution(judge, accept, settings, journal, ledger) if isinstance(judge, ModelJudge) else None
    bar = progress.bar("search, generation", total=settings.generations)

    def refine(population: Sequence[Policy]) -> Change:
        # Where eta changes, the order of the population does.
        if eta.choose():
            return "eta"
        return "projector" if projector and projector.refine(population[: settings.projector_policies]) else ""

    def report(generation: Generation) -> None:
        bar.advance(f"best J {generation.best:.3f}, uniform {generation.uniform:.3f}")

    plan = Plan(settings.generations, settings.offspring, settings.survivors, settings.seed, len(ends))
    try:
        found = _better(space, evolve(space, fitness, plan, refine, report, starts), decide, projector)
    finally:
        if projector:
            projector.put_back()
        judge.release()
    progress.say(f"search: {in_words(ledger.costs())}")
    return replace(found, eta=fitness.eta, eta_chosen=eta.after, eta_rankings=eta.rankings, costs=ledger.costs())


def _better(space: Space, outcome: Outcome, decide: Verdicts, projector: ProjectorEvolution | None) -> SearchResult:
    """What was found, with its projector, or the best uniform policy with the checkpoint's; the latter wins a tie."""
    (searched_validation,) = decide([outcome.best])
    if projector:
        projector.put_back()
    uniforms = space.uniforms()
    uniform_validation, best_uniform = min(zip(decide(uniforms), range(len(uniforms)), strict=True))
    searched_wins = searched_validation < uniform_validation
    return SearchResult(
        policy=outcome.best if searched_wins else uniforms[best_uniform],
        chosen="evolution" if searched_wins else "uniform",
        uniform_validation=uniform_validation,
        searched_validation=searched_validation,
        history=outcome.history,
        projector=projector.weights if projector and searched_wins else {},
    )


def _judges(
    model: Model,
    config: Config,
    stats: Stats,
    samples: Mapping[Split, Sequence[Sample]],
    space: Space,
    progress: Progress,
    ledger: Ledger,
) -> Callable[[Iterable[Sequence[Sample]]], Judge]:
    """Judges that share what they hold of the model."""
    settings, group = config.prune, space.levels[-1].group
    solves = settings.criterion == "sparsegpt"
    if solves and (reason := _masks_alone(model, config, space)):
        progress.say(f"policies are judged by SparseGPT's masks alone: {reason}")
        solves = False
    if model.streamed:
        return partial(StreamedJudge, model, settings, stats, group)
    if not solves:
        return partial(ModelJudge, PrunedModel(model, RankedWeights(model, settings, stats, group)))
    began = time.perf_counter()
    curvatures = dense_curvatures(model, samples["calibration"], config.data.batch_size, progress)
    ledger.add("second moments", 0, max(stats.tokens.values()), time.perf_counter() - began)
    return partial(ModelJudge, PrunedModel(model, SolvedWeights(model, settings, curvatures)))


def _masks_alone(model: Model, config: Config, space: Space) -> str:
    """Why policies cannot be judged by the weights that SparseGPT makes for them; nothing where they can."""
    if model.streamed:
        return "the model stays on disk"
    needed, limit = solved_bytes(model, len(space.levels)) / 1e9, config.search.solved_gb
    if needed > limit:
        return f"its matrices at every level may take {needed:.1f} GB, and search.solved_gb = {limit:g}"
    return ""


def _parts(samples: Mapping[Split, Sequence[Sample]]) -> tuple[Sequence[Sample], Sequence[Sample], Sequence[Sample]]:
    """Samples to search on, to accept projectors on, and to compare with the uniform policies on."""
    search, validation = samples["search"], samples["validation"]
    if not search or len(validation) < 2:
        raise PruneError(
            f"the search has {len(search)} search and {len(validation)} validation samples; it needs at least 1 and 2 "
            "(data.search, data.validation), or set search.method = 'uniform'"
        )
    # Projectors are judged often, so on no more samples than a policy is.
    count = min(len(search), len(validation) // 2)
    return search, validation[:count], validation[count:]


def _ends(shares: Sequence[float], count: int) -> list[int]:
    """How many of `count` samples each stage looks at; stages that would look at the same ones are one."""
    return sorted({max(1, round(share * count)) for share in shares})


def _batches(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    """Samples that are judged together, in batches of about the same size; several, where there are several samples."""
    count = max(-(-len(samples) // _BATCH), min(len(samples), 2))
    borders = [round(i * len(samples) / count) for i in range(count + 1)]
    return [samples[start:end] for start, end in pairwise(borders)]
