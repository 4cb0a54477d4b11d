"""The policy search on a model: what judges policies, what they start from, and what decides between them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ..config import Config
from ..errors import PruneError
from ..model import Model
from ..policy import DENSE, Policy
from ..progress import Progress
from ..prune import Stats
from ..samples import Sample, Split
from .cost import in_words
from .eta import EtaChoice
from .evolution import Change, Generation, Outcome, Plan, evolve
from .fitness import ModelJudge
from .formulas import policy_by, starting_policies
from .journal import Journal
from .judges import judges
from .projector import ProjectorEvolution
from .result import SearchResult
from .space import search_space
from .task import Task
from .verdicts import Verdicts

# Samples per forward pass at most. They are also the folds that eta is chosen on.
_BATCH = 16
# By then some dozens of policies have been judged on all samples, and most of the search is still to come.
_ETA_AFTER = 5
# A formula's policy that removes so much more than was asked for is noted.
_BEYOND = 0.01


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
    space, method = search_space(model.layers(), config), config.search.method
    if not config.search.budget.binds:
        return SearchResult(space.policy(DENSE), "uniform")
    task = Task(model, stats, samples, config, space, progress, journal)
    if method == "evolution":
        return _search(task)
    policy = policy_by(method, task)
    removed, asked = policy.sparsity(space.layers), config.search.budget.sparsity
    if asked and removed > asked + _BEYOND:
        progress.note(
            f"search.method = '{method}' removes {removed:.1%} of the weights, not {asked:.1%}: prune.pattern = "
            f"'{space.pattern}' has no level between; 'evolution' mixes levels."
        )
    return SearchResult(policy, method, costs=task.ledger.costs())


def _search(task: Task) -> SearchResult:
    settings, space, journal, ledger = task.config.search, task.space, task.journal, task.ledger
    search, held_out, final = parts_of(task.samples)
    starts = starting_policies(task)
    judge_on = judges(task)
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
    if settings.projector_steps and not projector:
        task.progress.note("The projector did not evolve: a model that stays on disk gives it no gradients.")
    bar = task.progress.bar("search, generation", total=settings.generations)

    def refine(population: Sequence[Policy]) -> Change:
        # Where eta changes, the order of the population does.
        if eta.choose():
            return "eta"
        return "projector" if projector and projector.refine(population[: settings.projector_policies]) else ""

    def report(generation: Generation) -> None:
        bar.advance(f"best J {generation.best:.3f}, uniform {generation.uniform:.3f}")

    plan = Plan(settings.generations, settings.offspring, settings.survivors, settings.seed, len(ends))
    try:
        found = _better(task, evolve(space, fitness, plan, refine, report, starts), decide, projector)
    finally:
        if projector:
            projector.put_back()
        judge.release()
    task.progress.say(f"search: {in_words(ledger.costs())}")
    return replace(found, eta=fitness.eta, eta_chosen=eta.after, eta_rankings=eta.rankings, costs=ledger.costs())


def _better(task: Task, outcome: Outcome, decide: Verdicts, projector: ProjectorEvolution | None) -> SearchResult:
    """What was found, with its projector, or the best uniform policy with the checkpoint's; the latter wins a tie."""
    (searched_validation,) = decide([outcome.best])
    if projector:
        projector.put_back()
    uniforms = task.space.uniforms()
    uniform_validation, best_uniform = min(zip(decide(uniforms), range(len(uniforms)), strict=True))
    searched_wins = searched_validation < uniform_validation
    task.progress.say(
        f"J on held-out samples: searched {searched_validation:.3f}, uniform {uniform_validation:.3f}; the "
        f"{'searched' if searched_wins else 'uniform'} policy is taken"
    )
    return SearchResult(
        policy=outcome.best if searched_wins else uniforms[best_uniform],
        chosen="evolution" if searched_wins else "uniform",
        uniform_validation=uniform_validation,
        searched_validation=searched_validation,
        history=outcome.history,
        projector=projector.weights if projector and searched_wins else {},
    )


def parts_of(
    samples: Mapping[Split, Sequence[Sample]],
) -> tuple[Sequence[Sample], Sequence[Sample], Sequence[Sample]]:
    """Samples to search on, to accept projectors on, and to compare with the uniform policies on.

    Raises PruneError where there are too few.
    """
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
