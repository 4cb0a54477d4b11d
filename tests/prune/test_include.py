"""`prune.include` adds linear layers, with statistics of their own; `prune.skip` takes any away."""

import pytest
import torch
from tiny import make_samples

from slimdeploy.config import BudgetConfig, Config, Criterion, PruneConfig, SearchConfig
from slimdeploy.errors import ModelError
from slimdeploy.model import Model, encode
from slimdeploy.policy import DENSE, Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Pruning, collect_stats, prune_blockwise
from slimdeploy.search.space import search_space

SAMPLES = make_samples(4)


@pytest.fixture
def model(tiny_model: Model) -> Model:
    tiny_model.include = ("lm_head",)
    return tiny_model


def test_the_head_is_left_alone_unless_asked_for(tiny_model: Model) -> None:
    usual = tiny_model.layers()
    assert "lm_head" not in {layer.name for layer in usual}
    tiny_model.include = ("lm_h*", "*.mlp.fc1")
    first = tiny_model.layers()
    assert first[: len(usual)] == usual
    added = {layer.name: layer.tower for layer in first[len(usual) :]}
    # The last vision block is behind the features that the projector reads.
    assert added == {"lm_head": "language", "model.vision_tower.encoder.layers.2.mlp.fc1": "vision"}


def test_its_statistics_are_those_of_a_plain_forward_pass(model: Model) -> None:
    stats = collect_stats(model, SAMPLES, "wanda", 2, Progress.silent())
    seen = []
    handle = model.linear("lm_head").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for sample in SAMPLES:
        batch = {name: tensor for name, tensor in encode(model, [sample], answers=True).items() if name != "labels"}
        with torch.no_grad():
            model.module(**batch)
    handle.remove()
    expected = sum(inputs.double().flatten(0, -2).square().sum(0) for inputs in seen)
    torch.testing.assert_close(stats.input_sq_sum["lm_head"], expected, rtol=1e-4, atol=1e-6)
    assert stats.tokens["lm_head"] == sum(inputs.shape[1] for inputs in seen)


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_it_is_pruned_and_the_embeddings_are_not(model: Model, criterion: Criterion) -> None:
    policy = Policy({layer.name: Level(0.5) for layer in model.layers()})
    table = model.module.get_parameter("model.language_model.embed_tokens.weight")
    before = table.detach().clone()
    list(prune_blockwise(model, policy, Pruning(PruneConfig(criterion=criterion), SAMPLES, 2, Progress.silent())))
    assert float((model.linear("lm_head").weight == 0).float().mean()) == 0.5
    assert torch.equal(table, before)


def test_skip_wins(model: Model) -> None:
    config = Config(
        prune=PruneConfig(include=("lm_head",), skip=("lm_head", "*.q_proj")),
        search=SearchConfig(budget=BudgetConfig(sparsity=0.5)),
    )
    levels = search_space(model.layers(), config).uniforms()[0].levels
    assert {name for name, level in levels.items() if level == DENSE} == {
        layer.name for layer in model.layers() if layer.name == "lm_head" or layer.name.endswith(".q_proj")
    }


@pytest.mark.parametrize(
    ("glob", "problem"),
    [("*.nothing", "names no layer"), ("*.embed_tokens", "multiplies with no matrix"), ("lm_head", "also those of")],
)
def test_what_cannot_be_pruned_is_refused(tiny_model: Model, glob: str, problem: str) -> None:
    if glob == "lm_head":
        tiny_model.linear("lm_head").weight = tiny_model.module.get_submodule(
            "model.language_model.embed_tokens"
        ).weight  # type: ignore[assignment]
        tiny_model.pretrained.all_tied_weights_keys["lm_head.weight"] = "model.language_model.embed_tokens.weight"
    tiny_model.include = (glob,)
    with pytest.raises(ModelError, match=problem):
        tiny_model.layers()
