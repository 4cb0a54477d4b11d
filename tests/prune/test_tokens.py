"""ATV counts all text, and as much of the picture as its blocks turn it."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from slimdeploy.prune.recording import Call
from slimdeploy.prune.tokens import text_and_drifting

VALID = torch.tensor([[False, True, True, True, True, True]])
TEXT = torch.tensor([[False, False, False, False, True, True]])


def _call(hidden: Tensor, is_text: Tensor | None = TEXT) -> Call:
    return Call(hidden, (), {}, VALID, is_text)


def _turned(hidden: Tensor, drifts: list[float]) -> Tensor:
    """Outputs whose cosine with the inputs is 1 - drift, of another length."""
    across = torch.zeros_like(hidden)
    across[..., 0], across[..., 1] = -hidden[..., 1], hidden[..., 0]
    cosine = 1 - torch.tensor([drifts])
    mixed = cosine[..., None] * normalize(hidden, dim=-1) + (1 - cosine**2).sqrt()[..., None] * normalize(
        across, dim=-1
    )
    return 3 * mixed


@pytest.mark.parametrize(
    ("drifts", "chosen"),
    [
        ([9.0, 0.1, 0.9, 0.2, 0.0, 0.0], [2]),  # mean 0.4 of 2 text tokens: round(0.8)
        ([0.0, 0.9, 1.2, 1.0, 0.0, 0.0], [2, 3]),  # mean above 1 counts as 1
        ([0.0, 0.1, 0.2, 0.0, 0.9, 0.9], []),  # mean 0.1
    ],
)
def test_the_tokens_that_drift_most_join_the_text(drifts: list[float], chosen: list[int]) -> None:
    hidden = torch.zeros(1, 6, 4)
    hidden[..., :2] = torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(0))
    output = _turned(hidden, [min(drift, 2) for drift in drifts])
    tokens = text_and_drifting([_call(hidden)], [output])
    assert tokens is not None
    assert (tokens[0] & ~TEXT).nonzero()[:, 1].tolist() == chosen
    assert (tokens[0] & TEXT).equal(TEXT)


def test_the_share_is_that_of_all_samples_together() -> None:
    hidden = torch.ones(1, 6, 4)
    still, turned = hidden, -hidden  # drifts of 0 and 2: 1 in the mean, so as many visual tokens as text tokens
    tokens = text_and_drifting([_call(hidden), _call(hidden)], [still, turned])
    assert tokens is not None
    assert [int(mask.sum()) for mask in tokens] == [4, 4]


def test_a_tower_without_text_counts_everything() -> None:
    assert text_and_drifting([_call(torch.ones(1, 6, 4), is_text=None)], [torch.ones(1, 6, 4)]) is None
