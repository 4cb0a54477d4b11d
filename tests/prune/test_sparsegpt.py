"""SparseGPT equals its published algorithm, keeps exact counts, and loses less than masks alone."""

import numpy as np
import pytest
import torch
from torch import Tensor

from slimdeploy.errors import PruneError
from slimdeploy.packed import Encoding, pack, unpack
from slimdeploy.policy import Level, kept_per_row
from slimdeploy.progress import Progress
from slimdeploy.prune.criteria import wanda_scores
from slimdeploy.prune.database import as_stored
from slimdeploy.prune.moments import Moments
from slimdeploy.prune.patterns import mask_at, ranks
from slimdeploy.prune.sparsegpt import DAMPING, Curvature, curvature, sparsegpt

ROWS, COLUMNS = 48, 320


def _problem(seed: int = 0, columns: int = COLUMNS) -> tuple[Tensor, Tensor]:
    """A weight matrix, and correlated inputs of very different sizes, as layers see them."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(4 * columns, columns // 4, generator=generator)
    inputs = latent @ torch.randn(columns // 4, columns, generator=generator) / (columns // 4) ** 0.5
    inputs += 0.3 * torch.randn(inputs.shape, generator=generator)
    inputs *= torch.logspace(-0.5, 0.5, columns)[torch.randperm(columns, generator=generator)]
    return torch.randn(ROWS, columns, generator=generator), inputs


def _known(inputs: Tensor) -> Curvature:
    known = curvature(inputs.t() @ inputs)
    assert known is not None
    return known


def _error(candidate: Tensor, weight: Tensor, inputs: Tensor) -> float:
    """‖X Wᵀ - X W'ᵀ‖, what the layer puts out wrongly."""
    return float(((candidate - weight) @ inputs.t()).norm())


def _published(weight: Tensor, inputs: Tensor, level: Level, per_row: bool) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of Frantar and Alistarh (2023), column by column in float64, with their choice of masks: over all
    rows of a block of 128 columns, or the N smallest of M in a row; or, per row, evenly over the blocks of columns.
    """
    w = weight.double().clone()
    h = 2 * inputs.double().t() @ inputs.double() / len(inputs)
    h += DAMPING * h.diagonal().mean() * torch.eye(len(h))
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    mask = torch.ones_like(w, dtype=torch.bool)
    for c in range(w.shape[1]):
        error = (w / upper.diagonal()) ** 2
        if level.group and c % level.group == 0:
            group = slice(c, c + level.group)
            for row in range(len(w)):
                worst = error[row, group].argsort()[: level.group - level.kept_per_group]
                mask[row, c + worst] = False
        if not level.group and c % 128 == 0:
            columns = slice(c, min(c + 128, w.shape[1]))
            scores = error[:, columns]
            if per_row:
                share = kept_per_row(w.shape[1], level) / w.shape[1]
                removed = scores.shape[1] - (round(share * columns.stop) - round(share * columns.start))
                mask[:, columns] = mask[:, columns].scatter(1, scores.argsort(dim=1)[:, :removed], False)
            else:
                worst = scores.flatten().argsort()[: round(level.sparsity * scores.numel())]
                mask[:, columns].view_as(scores)[worst // scores.shape[1], worst % scores.shape[1]] = False
        remaining = torch.where(mask[:, c], w[:, c], 0.0)
        w[:, c + 1 :] -= torch.outer((w[:, c] - remaining) / upper[c, c], upper[c, c + 1 :])
        w[:, c] = remaining
    return w, mask


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("level", [Level(0.5), Level(0.7), Level(0.5, 4), Level(38 / 64, 64)], ids=str)
def test_masks_and_updates_are_the_published_ones(level: Level, per_row: bool) -> None:
    weight, inputs = _problem()
    pruned, mask = sparsegpt(weight, _known(inputs), level, per_row)
    expected, expected_mask = _published(weight, inputs, level, per_row)
    assert (mask == expected_mask).double().mean() >= 0.999
    assert (pruned - expected).norm() / expected.norm() < 1e-4


def test_wanda_masks_are_the_published_ones() -> None:
    weight, inputs = _problem()
    scores = wanda_scores(weight, inputs.square().sum(0))
    mask = mask_at(ranks(scores, 0), Level(0.6))
    metric = weight.double().abs() * inputs.double().norm(dim=0)  # Sun et al. (2024), eq. 1
    expected = torch.ones_like(mask)
    expected.scatter_(1, metric.argsort(dim=1)[:, : int(0.6 * COLUMNS)], False)
    assert (mask == expected).double().mean() >= 0.999


@pytest.mark.parametrize("columns", [320, 200, 65])
@pytest.mark.parametrize("level", [Level(0.55), Level(0.5, 4), Level(2 / 7, 7), Level(38 / 64, 64)], ids=str)
def test_every_row_keeps_what_the_policy_counts(level: Level, columns: int) -> None:
    weight, inputs = _problem(columns=columns)
    pruned, mask = sparsegpt(weight, _known(inputs), level)
    assert (mask.sum(1) == kept_per_row(columns, level)).all()
    assert not pruned[~mask].any()


@pytest.mark.parametrize("per_row", [True, False])
def test_others_make_up_for_what_goes(per_row: bool) -> None:
    weight, inputs = _problem()
    level, known = Level(0.6), _known(inputs)
    pruned, mask = sparsegpt(weight, known, level, per_row)
    wanda = weight * mask_at(ranks(wanda_scores(weight, inputs.square().sum(0)), 0), level)
    lost = _error(pruned, weight, inputs)
    assert lost < 0.8 * _error(weight * mask, weight, inputs)
    assert lost < 0.8 * _error(wanda, weight, inputs)


@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize(
    ("sparsity", "group"), [(0.0, 0), (0.5, 0), (0.5, 4), (0.5, 6), (0.5, 48), (0.5, 64), (92 / 192, 192)]
)
def test_rounded_survivors_are_what_is_packed(values: str, sparsity: float, group: int) -> None:
    weight, inputs = _problem(columns=384)
    level = Level(sparsity, group, values)  # type: ignore[arg-type]
    rounded, mask = sparsegpt(weight, _known(inputs), level)
    stored = unpack(pack(rounded.numpy(), Encoding(values, 128), "unstructured", mask.numpy()))  # type: ignore[arg-type]
    # Eight bits find their own scale again only where a group's largest weight is at the end of its grid.
    step = {"int8": float(rounded.abs().max()) / 127, "int4": 0.0}[values]
    assert np.abs(stored - rounded.numpy()).max() <= step / 2 + 1e-6


def test_rounding_together_with_pruning_loses_less_than_after_it() -> None:
    weight, inputs = _problem()
    known = _known(inputs)
    together, _ = sparsegpt(weight, known, Level(0.5, values="int4"))
    pruned, _ = sparsegpt(weight, known, Level(0.5))
    assert _error(together, weight, inputs) < 0.95 * _error(as_stored(pruned, "int4"), weight, inputs)


def test_inputs_that_are_always_zero_lose_their_weights() -> None:
    weight, inputs = _problem()
    inputs[:, 7] = 0
    pruned, _ = sparsegpt(weight, _known(inputs), Level(0.5))
    assert not pruned[:, 7].any()
    assert pruned.isfinite().all()


def test_damping_is_raised_until_the_moments_can_be_inverted() -> None:
    indefinite = torch.diag(torch.tensor([1.0, 1.0, -0.05]))  # rounding makes such of nearly equal inputs
    known = curvature(indefinite)
    assert known is not None
    assert known.damping == pytest.approx(0.1)


def test_a_try_with_too_little_damping_leaves_no_trace() -> None:
    inputs = torch.randn(900, 600, generator=torch.Generator().manual_seed(0))
    moments = inputs.t() @ inputs
    moments.diagonal().sub_(0.05 * moments.diagonal().mean() + torch.linalg.eigvalsh(moments)[0])
    damped = moments.double() + 0.1 * moments.diagonal().mean() * torch.eye(600)
    known = curvature(moments.triu())
    assert known is not None
    assert known.damping == pytest.approx(0.1)
    torch.testing.assert_close((known.factor.t() @ known.factor).double(), damped.inverse(), rtol=1e-3, atol=1e-6)
    assert torch.equal(known.factor, known.factor.triu())


def test_a_damping_that_had_to_be_raised_is_told_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda _, words: said.append(words))
    moments = Moments()
    for name, last in (("blocks.1.fc1", 1.0), ("blocks.2.fc1", -0.05)):
        moments.add(name, torch.eye(3))
        moments._sums[name] = torch.diag(torch.tensor([1.0, 1.0, last]))
    list(moments.curvatures(Progress.silent()))
    assert said == ["blocks.2.fc1: damping raised to 10% to invert the inputs' second moments"]


def test_moments_that_cannot_be_inverted_name_the_layer() -> None:
    moments = Moments()
    moments.add("blocks.3.fc1", torch.full((2, 4), 1e25))  # squares are infinite
    with pytest.raises(PruneError, match=r"inputs of blocks\.3\.fc1 hold NaN or infinity"):
        next(moments.curvatures(Progress.silent()))
    moments.add("blocks.4.fc1", torch.eye(3))
    moments._sums["blocks.4.fc1"] = torch.diag(torch.tensor([1.0, 1.0, -50.0]))
    with pytest.raises(PruneError, match=r"inputs of blocks\.4\.fc1 cannot be inverted"):
        next(moments.curvatures(Progress.silent()))


def test_layers_with_the_same_inputs_share_their_moments() -> None:
    moments, shared, other = Moments(), torch.randn(20, 6), torch.randn(20, 6)
    for _ in range(2):
        for name in ("query", "key"):
            moments.add(name, shared)
        moments.add("down", other)
    found = {tuple(names): known for names, known in moments.curvatures(Progress.silent())}
    assert set(found) == {("query", "key"), ("down",)}
    expected = curvature(2 * other.t() @ other)
    assert expected is not None
    torch.testing.assert_close(found[("down",)].factor, expected.factor)
