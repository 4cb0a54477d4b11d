"""Policies by formula for a model: what each formula is told, and which of them a search can start from."""

import time
from collections.abc import Sequence
from typing import assert_never

from ..config import Formula, StartFormula
from ..policy import Policy
from .allocation import blocks_of, ecoflap, language_only, owl
from .sensitivity import answered_batches, outlier_shares, zeroth_order_slope
from .task import Task


def policy_by(formula: Formula, task: Task) -> Policy:
    """Within the budget. Raises PruneError where the formula cannot be computed or cannot meet it."""
    space, sparsity = task.space, task.config.search.budget.sparsity
    match formula:
        case "uniform":
            return space.uniforms()[0]
        case "language":
            return language_only(space)
        case "owl":
            return owl(space, sparsity, outlier_shares(task.model, task.stats, blocks_of(space.layers)))
        case "ecoflap":
            return ecoflap(space, sparsity, _zeroth_order_scores(task))
        case _:
            assert_never(formula)


def starting_policies(task: Task) -> list[Policy]:
    """Those of `search.start` that can be computed here; notes which cannot, and why."""
    return [policy_by(formula, task) for formula in _computable(task)]


def _computable(task: Task) -> Sequence[StartFormula]:
    if task.config.search.budget.bytes:
        return ()  # as the setting's description says: formulas are about sparsities
    if not task.space.has_choice():
        return ()  # they could but say what uniform says
    start = task.config.search.start
    if task.model.streamed:
        hindrance = "a model that stays on disk would be read for each of its matrices"
    elif not any(sample.answers for sample in task.samples["search"]):
        hindrance = "no search sample has an answer"
    else:
        return start
    if "ecoflap" in start:
        task.progress.note(f"The search did not start from ECoFLaP's policy as well: {hindrance}.")
    return [formula for formula in start if formula != "ecoflap"]


def _zeroth_order_scores(task: Task) -> dict[str, float]:
    """By block, the sum over its matrices; each is noted in the journal as soon as it is known."""
    batches = answered_batches(task.model, task.samples["search"])
    tokens = 2 * sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    blocks = blocks_of(task.space.layers)
    scores = dict.fromkeys(blocks, 0.0)
    bar = task.progress.bar("sensitivity", total=len(task.space.layers))
    for block, layers in blocks.items():
        for layer in layers:
            of = f"slope of {layer.name}"
            if (noted := task.journal.recall(of)) is None:
                began = time.perf_counter()
                slope = zeroth_order_slope(task.model, layer.name, batches, task.config.search.seed)
                noted = {"slope": slope, "seconds": time.perf_counter() - began}
                task.journal.note(of, noted)
            scores[block] += noted["slope"]
            task.ledger.add("ecoflap", 2, tokens, noted["seconds"])
            bar.advance()
    return scores
