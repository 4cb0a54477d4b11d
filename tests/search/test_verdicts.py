"""J is its formula, of the weights that ship where memory allows, and nothing is judged twice."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from searching import SAMPLES, judge_on, run_search, short_search, uniform, verdicts_of
from tiny import make_samples, masked, masks_of
from torch.nn.functional import cross_entropy

from slimdeploy.config import Criterion, PruneConfig
from slimdeploy.errors import PruneError
from slimdeploy.model import IGNORED_LABEL, Model, encode
from slimdeploy.policy import Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Database, RankedWeights, SolvedWeights, Stats, collect_stats, dense_curvatures
from slimdeploy.search.cost import Ledger
from slimdeploy.search.fitness import Loss, ModelJudge, PrunedModel, log_norm_ratio
from slimdeploy.search.journal import Journal
from slimdeploy.search.model_search import search_policy
from slimdeploy.search.space import search_space
from slimdeploy.search.verdicts import Verdicts


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_j_is_divergence_plus_cross_entropy_plus_the_norm_term(
    tiny_model: Model, stats: Stats, tmp_path: Path, eta: float
) -> None:
    samples = make_samples(3)
    policy = uniform(tiny_model, Level(0.5))
    masks = masks_of(tiny_model, policy, "wanda", stats)
    batch = dict(encode(tiny_model, samples, answers=True))
    labels = batch.pop("labels")
    with torch.inference_mode():
        dense = tiny_model.module(**batch).logits.log_softmax(-1)
        norms = sum(
            math.log(float((weight * mask).norm() / weight.norm()))
            for name, mask in masks.items()
            for weight in [tiny_model.linear(name).weight]
        )
        with masked(tiny_model, masks):
            logits = tiny_model.module(**batch).logits
    last_image = [int((ids == tiny_model.config.image_token_id).nonzero().max()) for ids in batch["input_ids"]]
    divergence = [
        (dense[i, t].exp() * (dense[i, t] - logits[i, t].log_softmax(-1))).sum()
        for i, start in enumerate(last_image)
        for t in range(start + 1, labels.shape[1] - 1)  # what follows the answer's end is not asked for
    ]
    answers = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL)
    expected = float(torch.stack(divergence).mean() + answers) + eta * norms

    verdicts = verdicts_of(judge_on(tiny_model, stats, samples), tmp_path)
    verdicts.eta = eta
    assert verdicts([policy]) == [pytest.approx(expected, rel=1e-4)]


def test_the_norm_term_falls_to_minus_infinity_and_such_a_policy_is_the_worst(tmp_path: Path) -> None:
    weight, nothing = torch.ones(2, 64), torch.zeros(2, 64, dtype=torch.bool)
    masks = [torch.arange(64).repeat(2, 1) < kept for kept in (64, 32, 1)]
    ratios = [log_norm_ratio(weight, mask) for mask in masks]
    assert ratios == pytest.approx([0.0, math.log(1 / 2) / 2, math.log(1 / 64) / 2])
    assert log_norm_ratio(weight, nothing) == -math.inf
    assert log_norm_ratio(torch.zeros(2, 64), masks[1]) == 0.0

    class OfNothing:
        samples, tokens, version = [1], [1], 0

        def losses(self, policies: Sequence[Policy], _: range) -> Iterator[list[Loss]]:
            yield from ([Loss(1.0, 1.0)] for _ in policies)

        def norm_term(self, _: Policy) -> float:
            return log_norm_ratio(weight, nothing)

        def release(self) -> None: ...

    verdicts = Verdicts("test", OfNothing(), [1], Journal(tmp_path), Ledger())
    verdicts.eta = 0.02
    assert verdicts([Policy({})]) == [math.inf]


def test_nothing_is_judged_twice_and_early_stages_use_fewer_tokens(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[object] = Counter()
    tokens: Counter[int] = Counter()
    losses = ModelJudge.losses

    def counted(self: ModelJudge, policies: Sequence[Policy], parts: range) -> Iterator[list[Loss]]:
        for policy in policies:
            seen.update((id(self), self.version, policy.key(), part) for part in parts)
            tokens[id(self)] += sum(self.tokens[part] for part in parts)
        return losses(self, policies, parts)

    monkeypatch.setattr(ModelJudge, "losses", counted)
    samples = {"search": make_samples(16, seed=1), "validation": make_samples(8, seed=2)}
    config = short_search(generations=6, offspring=12, stages=(0.125, 0.5, 1.0), projector_learning_rate=1e-4)
    result = run_search(tiny_model, stats, config, samples)
    assert any(generation.changed == "projector" for generation in result.history)
    assert set(seen.values()) == {1}
    costs = {cost.of: cost for cost in result.costs}
    unjudged = costs["projector steps"].tokens + costs["ecoflap"].tokens
    assert sum(cost.tokens for cost in result.costs) == sum(tokens.values()) + unjudged
    stages = [costs[f"on {count} search samples"] for count in (2, 8, 16)]
    each = [cost.tokens / cost.evaluations for cost in stages]
    assert each[0] < 0.5 * each[1] < 0.5 * each[2]
    assert stages[0].evaluations > stages[1].evaluations


def test_a_weight_that_was_set_without_a_note_of_it_is_put_back(tiny_model: Model, stats: Stats) -> None:
    judge, name = judge_on(tiny_model, stats, make_samples(2)), tiny_model.layers()[0].name
    weight = tiny_model.linear(name).weight
    dense = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
    judge.release()
    assert torch.equal(weight, dense)


@pytest.mark.parametrize("solved_gb", [8.0, 0.0])
def test_with_sparsegpt_the_weights_that_it_makes_are_judged_or_where_they_take_too_much_the_masks(
    tiny_model: Model, solved_gb: float
) -> None:
    criterion = PruneConfig(criterion="sparsegpt")
    stats = collect_stats(tiny_model, SAMPLES["calibration"], "sparsegpt", 3, Progress.silent())
    config = short_search(generations=1, projector_steps=0, eta=0.0, solved_gb=solved_gb)
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder, Progress.silent() as progress:
        result = search_policy(
            tiny_model, stats, SAMPLES, config.model_copy(update={"prune": criterion}), progress, Journal(Path(folder))
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.module.state_dict().items())
    assert ["masks alone" in note for note in progress.notes] == [True] * (solved_gb == 0), "and it says so"
    assert ("second moments" in {cost.of for cost in result.costs}) == (solved_gb > 0)

    database: Database = RankedWeights(tiny_model, criterion, stats, group=0)
    if solved_gb:
        curvatures = dense_curvatures(tiny_model, SAMPLES["calibration"], 3, Progress.silent())
        database = SolvedWeights(tiny_model, criterion, curvatures)
    decisive = [SAMPLES["validation"][4:6], SAMPLES["validation"][6:]]
    judge = ModelJudge(PrunedModel(tiny_model, database), decisive)
    (uniform,) = search_space(tiny_model.layers(), config).uniforms()
    (losses,) = judge.losses([uniform], range(2))
    mean = sum(loss.divergence + loss.answers for loss in losses) / 2
    assert result.uniform_validation == pytest.approx(mean, rel=1e-5)


def test_a_head_that_is_damaged_is_named_before_anything_is_searched(tiny_model: Model, stats: Stats) -> None:
    with torch.no_grad():
        tiny_model.linear("lm_head").weight[0, 0] = float("nan")
    with pytest.raises(PruneError, match=r"the dense model predicts NaN.*its head or the norm before it is damaged"):
        run_search(tiny_model, stats, short_search(start=()))


@pytest.mark.parametrize(("criterion", "noted"), [("wanda", True), ("sparsegpt", True), ("magnitude", False)])
def test_that_masks_for_pruned_inputs_are_not_what_was_judged_is_noted(
    tiny_model: Model, criterion: Criterion, noted: bool
) -> None:
    stats = collect_stats(tiny_model, SAMPLES["calibration"], criterion, 3, Progress.silent())
    config = short_search(generations=1, offspring=1, survivors=1, projector_steps=0)
    for propagate, expected in (("pruned", noted), ("dense", False)):
        prune = PruneConfig(criterion=criterion, propagate=propagate)  # type: ignore[arg-type]
        progress = Progress.silent()
        run_search(tiny_model, stats, config.model_copy(update={"prune": prune}), progress=progress)
        assert any("prune.propagate ships what pruned ones do" in note for note in progress.notes) == expected
