"""SparseGPT's matrices at every level are what pruning will make of the model."""

import pytest
import torch
from tiny import make_samples

from slimdeploy.config import PruneConfig
from slimdeploy.errors import PruneError
from slimdeploy.model import Model
from slimdeploy.policy import DENSE, Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Pruning, SolvedWeights, dense_curvatures, prune_blockwise
from slimdeploy.search.fitness import ModelJudge, PrunedModel

SAMPLES = make_samples(4)
CONFIG = PruneConfig(criterion="sparsegpt")
PROJECTOR = "model.multi_modal_projector.linear_1"


def _solved(model: Model) -> SolvedWeights:
    return SolvedWeights(model, CONFIG, dense_curvatures(model, SAMPLES, 2, Progress.silent()))


def _policy(model: Model, *levels: Level) -> Policy:
    return Policy({layer.name: levels[i % len(levels)] for i, layer in enumerate(model.layers())})


@pytest.mark.parametrize(
    "levels",
    [(Level(0.5), DENSE, Level(0.75)), (Level(0.5, 4),), (Level(0.0, values="int4"), Level(0.5, values="int8"))],
)
def test_they_are_what_pruning_ships(tiny_model: Model, levels: tuple[Level, ...]) -> None:
    database, policy = _solved(tiny_model), _policy(tiny_model, *levels)
    masks = {
        name: mask
        for _, block in prune_blockwise(tiny_model, policy, Pruning(CONFIG, SAMPLES, 2, Progress.silent()))
        for name, mask in block.items()
    }
    for name, level in policy.levels.items():
        assert torch.equal(database.pruned(name, level), tiny_model.linear(name).weight)
        assert torch.equal(database.mask(name, level), masks.get(name, torch.ones_like(database.mask(name, level))))


def test_a_layer_that_no_sample_reaches_is_named_where_it_is_to_be_pruned(tiny_model: Model) -> None:
    curvatures = dense_curvatures(tiny_model, SAMPLES, 2, Progress.silent())
    del curvatures[PROJECTOR]
    database = SolvedWeights(tiny_model, CONFIG, curvatures)
    assert torch.equal(database.pruned(PROJECTOR, DENSE), tiny_model.linear(PROJECTOR).weight)
    with pytest.raises(PruneError, match=f"no calibration sample reaches {PROJECTOR}; name it in prune.skip"):
        database.mask(PROJECTOR, Level(0.5))


def test_a_judge_with_them_says_what_the_pruned_model_loses(tiny_model: Model) -> None:
    policy = _policy(tiny_model, Level(0.5), Level(0.6))
    judge = ModelJudge(PrunedModel(tiny_model, _solved(tiny_model)), [SAMPLES])
    ((loss,),) = judge.losses([policy], range(1))
    judge.release()
    list(prune_blockwise(tiny_model, policy, Pruning(CONFIG, SAMPLES, 2, Progress.silent())))
    with torch.inference_mode():
        assert float(judge.proxy_loss(0)) == pytest.approx(loss.divergence + loss.answers, rel=1e-6)
    assert loss.divergence > 0


def test_a_projector_that_moves_keeps_what_its_weights_make_up_for(tiny_model: Model) -> None:
    database, level = _solved(tiny_model), Level(0.5)
    pruned = PrunedModel(tiny_model, database)
    pruned.apply(Policy({PROJECTOR: level}))
    solved, mask = database.pruned(PROJECTOR, level), database.mask(PROJECTOR, level)
    pruned.replace_dense(PROJECTOR, database.dense(PROJECTOR) + 0.25)
    moved = tiny_model.linear(PROJECTOR).weight
    torch.testing.assert_close(moved, solved + 0.25 * mask)
    assert not moved[~mask].any()
    pruned.replace_dense(PROJECTOR, database.dense(PROJECTOR))
    assert torch.equal(tiny_model.linear(PROJECTOR).weight, solved)
