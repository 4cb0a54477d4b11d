"""ATV counts all text, and as much of the picture as its blocks turn it."""

import pytest
import torch
from tiny import make_samples, masks_of
from torch import Tensor
from torch.nn.functional import normalize

from slimdeploy.config import Criterion, PruneConfig
from slimdeploy.model import Model, encode
from slimdeploy.policy import Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Pruning, collect_stats, prune_blockwise
from slimdeploy.prune.recording import Call
from slimdeploy.prune.tokens import text_and_drifting

CRITERIA: tuple[Criterion, Criterion] = ("atv", "wanda")
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


def test_in_blocks_that_hardly_turn_the_picture_text_alone_counts(tiny_model: Model) -> None:
    samples, blocks = make_samples(3), tiny_model.language_blocks()
    with torch.no_grad():
        for block in blocks:
            for path in ("self_attn.o_proj", "mlp.down_proj"):
                tiny_model.linear(f"{block}.{path}").weight.mul_(1e-4)
    name = f"{blocks[0]}.self_attn.q_proj"
    inputs: list[Tensor] = []
    hook = tiny_model.linear(name).register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    batch = encode(tiny_model, samples, answers=True)
    with torch.inference_mode():
        tiny_model.module(**batch)
    hook.remove()
    text = batch["attention_mask"].bool() & (batch["input_ids"] != tiny_model.media_token_id)

    stats = {name: collect_stats(tiny_model, samples, name, 3, Progress.silent()) for name in CRITERIA}
    assert stats["atv"].tokens[name] == int(text.sum()) < stats["wanda"].tokens[name]
    torch.testing.assert_close(stats["atv"].input_sq_sum[name], inputs[0][text].double().square().sum(0))

    policy = Policy({layer.name: Level(0.5) for layer in tiny_model.layers()})
    atv, wanda = (masks_of(tiny_model, policy, criterion, stats[criterion])[name] for criterion in CRITERIA)
    config = PruneConfig(criterion="atv")
    blockwise = {
        layer: mask
        for _, masks in prune_blockwise(tiny_model, policy, Pruning(config, samples, 3, Progress.silent()))
        for layer, mask in masks.items()
    }
    assert torch.equal(blockwise[name], atv)
    assert not torch.equal(atv, wanda)
