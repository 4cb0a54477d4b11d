"""What allocation formulas are told of a model: shares of outliers, and how much the loss moves with the weights."""

import hashlib
from collections.abc import Mapping, Sequence

import torch

from ..errors import PruneError
from ..losses import TextBatch, answer_loss, text_batch, text_logits
from ..model import Model
from ..policy import Layer
from ..prune import Stats
from ..prune.criteria import layer_scores
from ..prune.finite import finite_weight
from ..samples import Sample
from .allocation import OWL_OUTLIER

_SAMPLES = 32
_BATCH = 8
_STEP = 1e-3


def outlier_shares(model: Model, stats: Stats, blocks: Mapping[str, Sequence[Layer]]) -> dict[str, float]:
    """By block, the share of its weights whose score is more than M times the block's mean (OWL; Yin et al. 2024).

    The scores are Wanda's, whatever criterion prunes; with ATV's statistics, over its tokens.
    """
    shares = {}
    for block, layers in blocks.items():
        with model.resident(block):
            names = [layer.name for layer in layers]
            scores = torch.cat(
                [layer_scores(finite_weight(model, name), name, "wanda", stats).flatten() for name in names]
            )
        shares[block] = float((scores > OWL_OUTLIER * scores.mean()).float().mean())
    return shares


def answered_batches(model: Model, samples: Sequence[Sample]) -> list[TextBatch]:
    """Of at most 32 samples that have an answer. Raises PruneError where none has."""
    answered = [sample for sample in samples if sample.answers][:_SAMPLES]
    if not answered:
        raise PruneError(
            "ECoFLaP measures the loss of answers, but no search sample has one; set search.method = 'owl' or 'uniform'"
        )
    return [text_batch(model, answered[start : start + _BATCH]) for start in range(0, len(answered), _BATCH)]


def zeroth_order_slope(model: Model, name: str, batches: Sequence[TextBatch], seed: int) -> float:
    """Sum over batches of |L(W + εz) - L(W - εz)| / 2ε for one matrix (ECoFLaP; Sung et al. 2024).

    L is the cross-entropy of the answers; z is normal, another one for each batch, from the seed and the matrix's name.
    The model is left as it came.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return sum(_slope(model, name, batch, generator) for batch in batches)


def _slope(model: Model, name: str, batch: TextBatch, generator: torch.Generator) -> float:
    weight = model.linear(name).weight
    own = weight.detach().clone()
    step = _STEP * torch.randn(own.shape, generator=generator).to(own)
    losses = []
    with torch.inference_mode():
        try:
            for sign in (1, -1):
                weight.copy_(own + sign * step)
                losses.append(float(answer_loss(text_logits(model, batch), batch)))
        finally:
            weight.copy_(own)
    return abs(losses[0] - losses[1]) / (2 * _STEP)
