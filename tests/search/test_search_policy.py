"""The whole search on a tiny model: J is its formula, the model comes out dense, uniform wins where it is better."""

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_samples, masked, masks_of
from torch.nn.functional import cross_entropy

from slimdeploy import search
from slimdeploy.config import BudgetConfig, Config, ExportConfig, OnnxConfig, PruneConfig, SearchConfig
from slimdeploy.errors import PruneError
from slimdeploy.model import IGNORED_LABEL, Model, encode
from slimdeploy.policy import DENSE, Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Database, RankedWeights, SolvedWeights, Stats, collect_stats, dense_curvatures
from slimdeploy.samples import Sample, Split
from slimdeploy.search import Journal, SearchResult, formulas, search_policy
from slimdeploy.search.cost import Ledger
from slimdeploy.search.fitness import Loss, ModelJudge, PrunedModel, log_norm_ratio
from slimdeploy.search.projector import ProjectorEvolution
from slimdeploy.search.space import search_space
from slimdeploy.search.verdicts import Verdicts

WANDA = PruneConfig(criterion="wanda")
SAMPLES: dict[Split, Sequence[Sample]] = {
    "calibration": make_samples(3),
    "search": make_samples(4, seed=1),
    "validation": make_samples(8, seed=2),
}


@pytest.fixture
def stats(tiny_model: Model) -> Stats:
    return collect_stats(tiny_model, SAMPLES["calibration"], "wanda", 3, Progress.silent())


def _config(**settings: Any) -> Config:
    values: dict[str, Any] = {
        "generations": 3,
        "offspring": 4,
        "survivors": 2,
        "budget": BudgetConfig(sparsity=0.5),
    } | settings
    search = SearchConfig(**values)
    onnx = OnnxConfig(weights="packed" if search.budget.bytes else "packed-int8")
    return Config(prune=WANDA, search=search, export=ExportConfig(onnx=onnx))


def _run(
    model: Model,
    stats: Stats,
    config: Config,
    samples: dict[Split, Sequence[Sample]] = SAMPLES,
    journal: Path | None = None,
) -> SearchResult:
    with tempfile.TemporaryDirectory() as folder:
        return search_policy(model, stats, samples, config, Progress.silent(), Journal(journal or Path(folder)))


def _judge(model: Model, stats: Stats, *parts: Sequence[Sample]) -> ModelJudge:
    return ModelJudge(PrunedModel(model, RankedWeights(model, WANDA, stats, group=0)), parts)


def _verdicts(judge: ModelJudge, journal: Path, stages: Sequence[int] = ()) -> Verdicts:
    return Verdicts("test", judge, stages or [sum(judge.samples)], Journal(journal), Ledger())


def _uniform(model: Model, level: Level) -> Policy:
    return Policy({layer.name: level for layer in model.layers()})


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_j_is_divergence_plus_cross_entropy_plus_the_norm_term(
    tiny_model: Model, stats: Stats, tmp_path: Path, eta: float
) -> None:
    samples = make_samples(3)
    policy = _uniform(tiny_model, Level(0.5))
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

    verdicts = _verdicts(_judge(tiny_model, stats, samples), tmp_path)
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


def test_the_result_is_within_budget_and_repeats_by_seed(tiny_model: Model, stats: Stats) -> None:
    first, second = (_run(tiny_model, stats, _config()) for _ in range(2))
    assert first.policy == second.policy
    assert first.history == second.history
    assert first.projector.keys() == second.projector.keys()
    assert all(torch.equal(first.projector[name], tensor) for name, tensor in second.projector.items())
    assert first.policy.sparsity(tiny_model.layers()) >= 0.5


def test_a_search_ends_no_worse_than_the_formulas_that_it_starts_from(tiny_model: Model, stats: Stats) -> None:
    short = {"generations": 1, "offspring": 1, "survivors": 1, "eta": 0.0, "projector_steps": 0}
    judge = _judge(tiny_model, stats, SAMPLES["search"])

    def j(policy: Policy) -> float:
        (loss,) = next(iter(judge.losses([policy], range(1))))
        return loss.divergence + loss.answers

    formulas = [_run(tiny_model, stats, _config(method=method)).policy for method in ("owl", "ecoflap")]
    found = {start: _run(tiny_model, stats, _config(start=start, **short)) for start in ((), ("owl", "ecoflap"))}
    assert found["owl", "ecoflap"].history[0].best <= min(map(j, formulas)) + 1e-6
    assert found["owl", "ecoflap"].history[0].uniform == found[()].history[0].uniform
    assert {cost.of for cost in found["owl", "ecoflap"].costs} - {cost.of for cost in found[()].costs} == {"ecoflap"}


@pytest.mark.parametrize("solved_gb", [8.0, 0.0])
def test_with_sparsegpt_the_weights_that_it_makes_are_judged_or_where_they_take_too_much_the_masks(
    tiny_model: Model, solved_gb: float
) -> None:
    criterion = PruneConfig(criterion="sparsegpt")
    stats = collect_stats(tiny_model, SAMPLES["calibration"], "sparsegpt", 3, Progress.silent())
    config = _config(generations=1, projector_steps=0, eta=0.0, solved_gb=solved_gb)
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder, Progress.silent() as progress:
        progress.say = said.append  # type: ignore[method-assign]
        result = search_policy(
            tiny_model, stats, SAMPLES, config.model_copy(update={"prune": criterion}), progress, Journal(Path(folder))
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.module.state_dict().items())
    alone = [words for words in said if "masks alone" in words]
    assert len(alone) == (solved_gb == 0), "and it says so"
    assert result.notes == tuple(alone), "where the report looks for it"
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


@pytest.mark.parametrize(
    ("settings", "answered", "left_out"),
    [
        ({"budget": BudgetConfig(bytes=40_000), "values": ("int8",)}, True, {"owl", "ecoflap"}),
        ({"start": ()}, True, {"owl", "ecoflap"}),
        ({}, False, {"ecoflap"}),
        ({}, True, set()),
    ],
)
def test_the_search_starts_from_the_formulas_that_can_be_computed(
    tiny_model: Model, stats: Stats, settings: dict[str, Any], answered: bool, left_out: set[str]
) -> None:
    asked: list[str] = []

    def noted(formula: Any, task: Any) -> Policy:
        asked.append(formula)
        policy: Policy = task.space.uniforms()[0]
        return policy

    samples = SAMPLES if answered else {**SAMPLES, "search": make_samples(4, answered=False)}
    short = {"generations": 1, "offspring": 1, "survivors": 1, "projector_steps": 0, **settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formulas, "policy_by", noted)
        result = _run(tiny_model, stats, _config(**short), samples)
    assert set(asked) == {"owl", "ecoflap"} - left_out
    assert len(result.notes) == (left_out == {"ecoflap"}), "what was to be done and was not stands in the report"


def test_too_few_samples_are_refused_before_anything_is_computed(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formulas, "zeroth_order_slope", lambda *_: pytest.fail("ECoFLaP was asked"))
    with pytest.raises(PruneError, match="4 search and 1 validation samples"):
        _run(tiny_model, stats, _config(), {**SAMPLES, "validation": make_samples(1)})


def test_a_head_that_is_damaged_is_named_before_anything_is_searched(tiny_model: Model, stats: Stats) -> None:
    with torch.no_grad():
        tiny_model.linear("lm_head").weight[0, 0] = float("nan")
    with pytest.raises(PruneError, match=r"the dense model predicts NaN.*its head or the norm before it is damaged"):
        _run(tiny_model, stats, _config(start=()))


def test_the_bar_tells_the_best_j_and_that_of_uniform(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Noting:
        def advance(self, note: str = "", count: int = 1) -> None:
            told.extend([note] * count)

    monkeypatch.setattr(Progress, "bar", lambda *_, **__: Noting())
    result = _run(tiny_model, stats, _config())
    expected = [f"best J {each.best:.3f}, uniform {each.uniform:.3f}" for each in result.history]
    assert [note for note in told if "J" in note] == expected


def test_a_search_that_was_killed_goes_on_where_it_was(
    tiny_model: Model, stats: Stats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(generations=6, projector_learning_rate=1e-3)
    before = {name: tensor.clone() for name, tensor in tiny_model.module.state_dict().items()}
    undisturbed = _run(tiny_model, stats, config)
    judged: list[Policy] = []
    apply, limit = PrunedModel.apply, 14

    def counted(self: PrunedModel, policy: Policy) -> None:
        judged.append(policy)
        if len(judged) == limit:
            raise KeyboardInterrupt
        apply(self, policy)

    monkeypatch.setattr(PrunedModel, "apply", counted)
    kills, result = 0, None
    while result is None:
        judged.clear()
        tiny_model.module.load_state_dict(before)  # as a new process loads it
        try:
            result = _run(tiny_model, stats, config, journal=tmp_path)
        except KeyboardInterrupt:
            kills += 1
            assert kills < 20, "the search does not get any further"
    assert kills >= 2, "the search was not killed often enough to tell"
    assert (result.policy, result.history) == (undisturbed.policy, undisturbed.history)
    assert (result.eta, result.eta_rankings) == (undisturbed.eta, undisturbed.eta_rankings)
    assert [replace(cost, seconds=0) for cost in result.costs] == [
        replace(cost, seconds=0) for cost in undisturbed.costs
    ]
    assert result.projector.keys() == undisturbed.projector.keys()
    assert all(torch.equal(result.projector[name], tensor) for name, tensor in undisturbed.projector.items())


def test_the_model_comes_out_dense(tiny_model: Model, stats: Stats) -> None:
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.module.named_parameters()}
    _run(tiny_model, stats, _config(projector_learning_rate=1e-2))
    for name, parameter in tiny_model.module.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


@pytest.mark.parametrize("calls", [1, 5, 9])
def test_the_model_comes_out_dense_from_a_search_that_fails(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.module.named_parameters()}
    proxy_loss, left = ModelJudge.proxy_loss, iter(range(calls))

    def failing(self: ModelJudge, part: int) -> torch.Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return proxy_loss(self, part)

    monkeypatch.setattr(ModelJudge, "proxy_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        _run(tiny_model, stats, _config(generations=9, projector_learning_rate=1e-2))
    for name, parameter in tiny_model.module.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_weight_that_was_set_without_a_note_of_it_is_put_back(tiny_model: Model, stats: Stats) -> None:
    judge, name = _judge(tiny_model, stats, make_samples(2)), tiny_model.layers()[0].name
    weight = tiny_model.linear(name).weight
    dense = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
    judge.release()
    assert torch.equal(weight, dense)


@pytest.mark.parametrize(("eta_changes", "accepted"), [(False, (1,)), (True, ())])
def test_a_projector_counts_as_accepted_unless_eta_took_its_turn(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch, eta_changes: bool, accepted: tuple[int, ...]
) -> None:
    monkeypatch.setattr(search.EtaChoice, "choose", lambda _: eta_changes)
    monkeypatch.setattr(ProjectorEvolution, "refine", lambda *_: True)
    result = _run(tiny_model, stats, _config(generations=1, eta="auto"))
    assert result.eta_chosen == 1
    assert result.summary().accepted == accepted


def _evolution(
    model: Model,
    stats: Stats,
    journal: Path,
    settings: SearchConfig,
    held_out: Callable[[Sequence[Policy]], list[float]],
) -> ProjectorEvolution:
    train = _judge(model, stats, make_samples(2), make_samples(2, seed=3))
    return ProjectorEvolution(train, held_out, settings, Journal(journal), Ledger())


def test_projector_steps_that_do_not_help_held_out_samples_are_dropped_and_not_taken_again(
    tiny_model: Model, stats: Stats, tmp_path: Path
) -> None:
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.module.named_parameters()}
    verdicts = iter([[1.0, 3.0], [2.0, 2.0]])
    settings = SearchConfig(projector_learning_rate=1.0)
    evolution = _evolution(tiny_model, stats, tmp_path, settings, lambda _: next(verdicts))
    policies = [_uniform(tiny_model, DENSE), _uniform(tiny_model, Level(0.5))]
    assert not evolution.refine(policies)
    assert evolution.weights == {}
    assert evolution.train.version == 0
    evolution.train.pruned.apply(policies[0])
    assert all(torch.equal(parameter, before[name]) for name, parameter in tiny_model.module.named_parameters())
    assert not evolution.refine(policies), "a call passes without a try"
    assert not evolution.refine(policies), "no third verdict is asked for"


def test_samples_without_a_picture_do_not_move_the_projector(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    verdicts = iter([[1.0], [0.5]])
    samples = [replace(sample, images=()) for sample in make_samples(2)]
    train = _judge(tiny_model, stats, samples)
    evolution = ProjectorEvolution(train, lambda _: next(verdicts), SearchConfig(), Journal(tmp_path), Ledger())
    old = evolution.parameters()
    assert evolution.refine([_uniform(tiny_model, Level(0.5))])
    assert all(torch.equal(evolution.weights[name], parameter) for name, parameter in old.items())


def test_steps_that_are_too_small_for_the_models_type_add_up(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    tiny_model.module.to(torch.bfloat16)
    verdicts = iter([[1.0], [0.5], [0.5], [0.4]])
    settings = SearchConfig(projector_steps=3, projector_learning_rate=1e-6)
    evolution = _evolution(tiny_model, stats, tmp_path, settings, lambda _: next(verdicts))
    old = evolution.parameters()
    assert evolution.refine([_uniform(tiny_model, DENSE)])
    assert all(torch.equal(evolution.parameters()[name], tensor) for name, tensor in evolution.weights.items())
    assert evolution.refine([_uniform(tiny_model, DENSE)])
    (name, *_) = (name for name in old if name.endswith("linear_2.weight"))
    moved = (evolution.weights[name] - old[name]).abs().mean()
    assert 2e-6 < float(moved) < 8e-6, "six steps of Adam, each about as long as the learning rate"
    assert tiny_model.linear(name.removesuffix(".weight")).weight.dtype == torch.bfloat16


def test_tries_become_rarer_while_they_do_not_help(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    asked: list[int] = []
    calls = iter(range(1, 20))

    def held_out(_: Sequence[Policy]) -> list[float]:
        asked.append(call)
        return [1.0]

    evolution = _evolution(tiny_model, stats, tmp_path, SearchConfig(projector_steps=1), held_out)
    for call in calls:
        evolution.refine([_uniform(tiny_model, Level(call / 100))])
    assert asked[::2] == [1, 3, 6, 11]


def test_projector_steps_follow_the_mean_loss_of_the_policies(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    """One step of Adam moves each weight by its learning rate against the sign of the summed gradients."""
    rate = 1e-3
    settings = SearchConfig(projector_learning_rate=rate, projector_steps=1)
    verdicts = iter([[1.0, 1.0], [1.0, 0.5]])
    evolution = _evolution(tiny_model, stats, tmp_path, settings, lambda _: next(verdicts))
    policies = [_uniform(tiny_model, Level(0.3)), _uniform(tiny_model, Level(0.7))]
    old, gradients = evolution.parameters(), []
    for policy in policies:
        evolution.train.pruned.apply(policy)
        linear = tiny_model.linear(name := next(name for name in policy.levels if "projector" in name))
        (gradient,) = torch.autograd.grad(evolution.train.proxy_loss(1), [linear.weight])
        gradients.append(gradient * evolution.train.pruned.mask_now(name))
    assert evolution.refine(policies)
    moved = evolution.weights[f"{name}.weight"] - old[f"{name}.weight"]
    summed = sum(gradients)
    clear = summed.abs() > 1e-4 * summed.abs().max()
    assert torch.allclose(moved[clear], -rate * summed.sign()[clear], rtol=1e-2)
    assert not moved[summed == 0].any(), "what both masks hide stays as it was"
    assert not torch.equal(gradients[0].sign()[clear], summed.sign()[clear]), "both policies count"


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
    config = _config(generations=6, offspring=12, stages=(0.125, 0.5, 1.0), projector_learning_rate=1e-4)
    result = _run(tiny_model, stats, config, samples)
    assert any(generation.changed == "projector" for generation in result.history)
    assert set(seen.values()) == {1}
    costs = {cost.of: cost for cost in result.costs}
    unjudged = costs["projector steps"].tokens + costs["ecoflap"].tokens
    assert sum(cost.tokens for cost in result.costs) == sum(tokens.values()) + unjudged
    stages = [costs[f"on {count} search samples"] for count in (2, 8, 16)]
    each = [cost.tokens / cost.evaluations for cost in stages]
    assert each[0] < 0.5 * each[1] < 0.5 * each[2]
    assert stages[0].evaluations > stages[1].evaluations


def test_projector_steps_that_help_are_kept_and_touch_nothing_else(tiny_model: Model, stats: Stats) -> None:
    result = _run(tiny_model, stats, _config(generations=6, projector_learning_rate=1e-3, projector_steps=8))
    assert result.chosen == "evolution"
    assert any(generation.changed == "projector" for generation in result.history)
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.module.named_parameters()}
    result.apply_projector(tiny_model)
    changed = {name for name, now in tiny_model.module.named_parameters() if not torch.equal(now, before[name])}
    assert changed == set(result.projector)
    assert all("projector" in name for name in changed)


def test_uniform_is_returned_where_it_wins_held_out(
    tiny_model: Model, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worst(space: search.Space, *_: object) -> Any:
        policy = space.policy(space.levels[-1]).with_level(space.layers[0].name, space.levels[0])
        return search.Outcome(policy, ())

    monkeypatch.setattr(search, "evolve", worst)
    result = _run(tiny_model, stats, _config())
    assert result.chosen == "uniform"
    assert result.uniform_validation <= result.searched_validation
    assert len(set(result.policy.levels.values())) == 1


@pytest.mark.parametrize("settings", [{"method": "uniform"}, {"budget": BudgetConfig(sparsity=0)}])
def test_what_needs_no_search_is_not_searched(tiny_model: Model, settings: dict[str, Any]) -> None:
    result = _run(tiny_model, Stats(), _config(**settings), {})
    assert result.chosen == "uniform"
    assert result.history == ()


@pytest.mark.parametrize("pattern", ["2:4", "*:8"])
def test_patterns_in_groups_are_searched(tiny_model: Model, stats: Stats, pattern: str) -> None:
    config = _config(generations=1, budget=BudgetConfig(sparsity=0.4))
    result = _run(
        tiny_model, stats, config.model_copy(update={"prune": PruneConfig(criterion="wanda", pattern=pattern)})
    )
    assert {level.group for level in result.policy.levels.values()} <= {0, int(pattern[2:])}
    assert result.policy.sparsity(tiny_model.layers()) >= 0.4


def test_without_samples_there_is_no_search(tiny_model: Model, stats: Stats) -> None:
    with pytest.raises(PruneError, match="needs at least 1 and 2"):
        _run(tiny_model, stats, _config(), {"search": [], "validation": []})


def test_samples_without_answers_are_searched_on_by_divergence(tiny_model: Model, stats: Stats) -> None:
    unknown: dict[Split, Sequence[Sample]] = {
        split: [replace(sample, answers=()) for sample in samples] for split, samples in SAMPLES.items()
    }
    result = _run(tiny_model, stats, _config(generations=1, eta=0.0), unknown)
    assert 0 < result.searched_validation < 10


def test_a_saved_result_loads_equal(tiny_model: Model, stats: Stats, tmp_path: Path) -> None:
    result = _run(tiny_model, stats, _config(projector_learning_rate=1e-3))
    result.save(tmp_path)
    again = SearchResult.load(tmp_path)
    assert replace(again, projector={}) == replace(result, projector={})
    assert all(torch.equal(again.projector[name], tensor) for name, tensor in result.projector.items())
