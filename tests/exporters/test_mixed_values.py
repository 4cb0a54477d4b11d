"""A policy that stores each matrix in its own type: the export takes the bytes that the search counted, and runs."""

import copy
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_samples

from slimdeploy.artifact import Manifest
from slimdeploy.config import (
    BudgetConfig,
    CheckpointConfig,
    Config,
    ExportConfig,
    OnnxConfig,
    PruneConfig,
    SearchConfig,
)
from slimdeploy.errors import ExportError
from slimdeploy.exporters import ExportJob, export, stored_bytes, write_card
from slimdeploy.exporters.onnx_stored import stored_reference
from slimdeploy.gain import missing_gains
from slimdeploy.layouts import packed_matrices
from slimdeploy.model import Model
from slimdeploy.packed import PackedTensor
from slimdeploy.packed import read_packed as read_packed_file
from slimdeploy.policy import Policy, describe
from slimdeploy.progress import Progress
from slimdeploy.prune import RankedWeights, Stats, set_weights
from slimdeploy.samples import Sample
from slimdeploy.search.space import Space, search_space

pytestmark = pytest.mark.usefixtures("traced_once")

EXPORTS = {
    "onnx": ExportConfig(onnx=OnnxConfig(weights="packed")),
    "checkpoint": ExportConfig(format="checkpoint", checkpoint=CheckpointConfig(weights="packed")),
}
BUDGET = 90_000


@pytest.fixture(scope="module")
def space(model: Model) -> Space:
    search = SearchConfig(budget=BudgetConfig(bytes=BUDGET))
    return search_space(model.layers(), Config(search=search, export=EXPORTS["onnx"]))


@pytest.fixture(scope="module")
def policy(space: Space) -> Policy:
    """Mutated until it is a mix of types and of dense and sparse."""
    rng, policy = random.Random(0), space.uniforms()[0]
    for _ in range(20):
        policy = space.mutate(policy, rng)
    assert {level.values for level in policy.levels.values()} == {"int8", "int4"}
    assert 0 < sum(level.sparsity == 0 for level in policy.levels.values()) < len(policy.levels)
    return policy


@pytest.fixture(scope="module")
def pruned(model: Model, policy: Policy) -> Model:
    """At the policy, by magnitude, from weights of which none is zero."""
    from slimdeploy.model import load_model

    dense = load_model(str(model.source))
    database = RankedWeights(dense, PruneConfig(criterion="magnitude"), Stats(), group=0)
    masks = {name: database.mask(name, level) for name, level in policy.levels.items()}
    set_weights(dense, {name: database.dense(name) * mask for name, mask in masks.items()})
    return dense


def _job(form: str, policy: Policy, model: Model) -> ExportJob:
    rows = describe(model.layers(), policy)
    patterns, values = ({row["name"]: row[key] for row in rows} for key in ("pattern", "values"))
    return ExportJob(EXPORTS[form], make_samples(3), patterns, values)


def _packed(form: str, folder: Path) -> dict[str, PackedTensor]:
    if form == "checkpoint":
        return read_packed_file(folder / "model.safetensors")[0]
    return dict(stored_reference(folder, "model.language_model.embed_tokens").packed)


@pytest.mark.parametrize("form", EXPORTS)
def test_a_mixed_export_verifies_and_takes_the_bytes_that_the_policy_costs(
    form: str, pruned: Model, policy: Policy, space: Space, tmp_path: Path
) -> None:
    model = copy.copy(pruned)
    verification = export(model, tmp_path, _job(form, policy, model), Progress.silent())
    assert verification["weights"] == "packed"
    assert verification["prompts"] == 3
    stored = stored_bytes(model, tmp_path)
    assert stored == {layer.name: space.cost(layer, policy.levels[layer.name]) for layer in model.layers()}
    assert BUDGET - 1_000 < sum(stored.values()) == space.spent(policy) <= BUDGET
    packed = _packed(form, tmp_path)
    for name, level in policy.levels.items():
        assert (packed[name].encoding.values, packed[name].encoding.group) == (level.values, 128), name

    rows = [row | {"bytes": stored[row["name"]]} for row in describe(model.layers(), policy)]
    manifest = Manifest(form, "tiny", "llava", policy.sparsity(model.layers()), rows, verification=verification)
    assert manifest.is_packed
    assert [(each.encoding, each.kept) for each in packed_matrices(manifest)] == [
        (packed[row["name"]].encoding, packed[row["name"]].kept) for row in rows
    ]
    assert not any("masks would take" in note for note in missing_gains(replace(manifest, sparsity=0.0)))
    write_card(tmp_path, manifest)
    assert "int4, int8" in (tmp_path / "README.md").read_text()


def test_a_matrix_that_the_policy_says_nothing_of_is_refused(
    model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"which says nothing of model\..*; set 'packed-int8'"):
        export(model, tmp_path, ExportJob(EXPORTS["onnx"], prompts), Progress.silent())
