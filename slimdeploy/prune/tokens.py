"""Which tokens the statistics are about. Knows no weights."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .recording import Call


def text_and_drifting(calls: Sequence[Call], outputs: Sequence[Tensor]) -> list[Tensor] | None:
    """All text tokens, and the visual tokens that a block turns most (ATV-Pruning; Li et al. 2026, arXiv 2603.16001).

    A token's drift is 1 - cos(in, out) of the block. Every sample gives as many visual tokens as it has text tokens,
    times the mean drift of all visual tokens in the block (at most 1): blocks that work on the picture show more of it.
    outputs: by call, (samples, tokens, width). Returns bool (samples, tokens) by call; None where no call knows its
    text, as in the vision tower.
    """
    visual = [call.valid & ~call.is_text for call in calls if call.is_text is not None]
    if not visual:
        return None
    drifts = [_drift(call.hidden, output) for call, output in zip(calls, outputs, strict=True)]
    drifting = torch.cat([drift[mask] for drift, mask in zip(drifts, visual, strict=True)])
    share = float(drifting.mean().clamp(max=1)) if len(drifting) else 0.0
    return [_with_most_drifting(call, drift, share) for call, drift in zip(calls, drifts, strict=True)]


def _drift(before: Tensor, after: Tensor) -> Tensor:
    return 1 - cosine_similarity(before.float(), after.float(), dim=-1)


def _with_most_drifting(call: Call, drift: Tensor, share: float) -> Tensor:
    assert call.is_text is not None
    chosen = call.is_text.clone()
    for sample, text in enumerate(call.is_text):
        visual = call.valid[sample] & ~text
        count = min(round(share * int(text.sum())), int(visual.sum()))
        order = drift[sample].masked_fill(~visual, -torch.inf).argsort(descending=True, stable=True)
        chosen[sample, order[:count]] = True
    return chosen
