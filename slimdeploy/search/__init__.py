"""The policy search: how much of each weight matrix goes, so that the whole meets its budget and loses least."""

from collections.abc import Mapping, Sequence
from typing import assert_never

from ..config import Config
from ..errors import PruneError
from ..model import Model
from ..policy import Policy
from ..progress import Progress
from ..prune import RankedWeights, Stats
from ..samples import Sample, Split
from .allocation import ecoflap, language_only, owl
from .evolution import Generation, Outcome, Plan, evolve
from .fitness import Judge, PrunedModel
from .journal import Journal
from .projector import ProjectorEvolution
from .result import SearchResult
from .sensitivity import outlier_shares, zeroth_order_scores
from .space import Space, search_space

__all__ = ["Generation", "Journal", "Outcome", "SearchResult", "Space", "search_policy"]

# Samples per forward pass; small enough that a gradient step sees a part of the samples only.
_BATCH = 32


def search_policy(
    model: Model,
    stats: Stats,
    samples: Mapping[Split, Sequence[Sample]],
    config: Config,
    progress: Progress,
    journal: Journal,
) -> SearchResult:
    """The best policy within `search.budget`, and the uniform one where that is better on held-out samples.

    samples: `search` to search on, `validation` to judge on. The model comes dense and is left dense.
    Other methods than "evolution" follow a formula and judge nothing. With the journal of a search that was killed,
    given the same arguments, this one goes on where that one was.
    Deterministic: equal inputs and seeds give equal results. Raises PruneError where the budget cannot be met.
    """
    space = search_space(model.layers(), config)
    sparsity, method = config.search.budget.sparsity, config.search.method
    if sparsity == 0:
        return SearchResult(space.uniform(), "uniform", 0.0, 0.0)
    match method:
        case "evolution":
            return _search(model, stats, samples, config, progress, space, journal)
        case "uniform":
            policy = space.uniform()
        case "language":
            policy = language_only(space)
        case "owl":
            policy = owl(space, sparsity, outlier_shares(model, config.prune.criterion, stats))
        case "ecoflap":
            scores = zeroth_order_scores(model, samples["search"], config.search.seed, progress)
            policy = ecoflap(space, sparsity, scores)
        case _:
            assert_never(method)
    return SearchResult(policy, method, 0.0, 0.0)


def _search(
    model: Model,
    stats: Stats,
    samples: Mapping[Split, Sequence[Sample]],
    config: Config,
    progress: Progress,
    space: Space,
    journal: Journal,
) -> SearchResult:
    pruned = PrunedModel(model, RankedWeights(model, config.prune, stats, space.levels[-1].group))
    # While the model is dense: a judge notes what the dense model says about its samples.
    eta = config.search.eta
    train, held_out, final = (Judge.on(pruned, part, eta, _BATCH) for part in _parts(samples))
    projector = ProjectorEvolution(train, held_out, config.search, journal)
    checkpoint_projector = projector.parameters()
    bar = progress.bar("search", total=config.search.generations)

    def report(generation: Generation) -> None:
        bar.advance(f"best J {generation.best:.3f}, uniform {generation.uniform:.3f}")

    def fitness(policy: Policy) -> float:
        return journal.verdict(f"projector {projector.version}, {policy.key()}", lambda: train(policy))

    uniform = space.uniform()
    outcome = evolve(space, fitness, _plan(config), projector.refine, report)
    searched_validation = final(outcome.best)
    projector.install(checkpoint_projector)
    uniform_validation = final(uniform)
    pruned.apply(_dense(space))
    searched_wins = searched_validation < uniform_validation
    return SearchResult(
        policy=outcome.best if searched_wins else uniform,
        chosen="evolution" if searched_wins else "uniform",
        uniform_validation=uniform_validation,
        searched_validation=searched_validation,
        history=outcome.history,
        projector=projector.weights if searched_wins else {},
    )


def _parts(samples: Mapping[Split, Sequence[Sample]]) -> tuple[Sequence[Sample], Sequence[Sample], Sequence[Sample]]:
    """Samples to search on, to accept projectors on, and to compare with the uniform policy on."""
    search, validation = samples["search"], samples["validation"]
    if not search or len(validation) < 2:
        raise PruneError(
            f"the search has {len(search)} search and {len(validation)} validation samples; it needs at least 1 and 2 "
            "(data.search, data.validation), or set search.method = 'uniform'"
        )
    # Projectors are judged often, so on no more samples than a policy is.
    count = min(len(search), len(validation) // 2)
    return search, validation[:count], validation[count:]


def _plan(config: Config) -> Plan:
    settings = config.search
    return Plan(settings.generations, settings.offspring, settings.survivors, settings.seed)


def _dense(space: Space) -> Policy:
    return space.policy(space.levels[0])
