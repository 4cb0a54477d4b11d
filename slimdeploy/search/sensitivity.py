"""What allocation formulas are told of a model: shares of outliers, and how much the loss moves with the weights."""

import time
from collections.abc import Sequence

import torch

from ..errors import PruneError
from ..losses import TextBatch, answer_loss, text_batch, text_logits
from ..model import Model
from ..progress import Progress
from ..prune import Stats
from ..prune.criteria import layer_scores
from ..samples import Sample
from .allocation import OWL_OUTLIER, blocks_of
from .cost import Cost

_SAMPLES = 32
_BATCH = 8
_STEP = 1e-3


def outlier_shares(model: Model, stats: Stats) -> dict[str, float]:
    """By block, the share of its weights whose score is more than M times the block's mean (OWL; Yin et al. 2024).

    The scores are Wanda's, whatever criterion prunes.
    """
    shares = {}
    for block, layers in blocks_of(model.layers()).items():
        with model.resident(block):
            scores = torch.cat([layer_scores(model, layer.name, "wanda", stats).flatten() for layer in layers])
        shares[block] = float((scores > OWL_OUTLIER * scores.mean()).float().mean())
    return shares


def zeroth_order_scores(
    model: Model, samples: Sequence[Sample], seed: int, progress: Progress
) -> tuple[dict[str, float], Cost]:
    """By block, the sum over its matrices of |L(W + εz) - L(W - εz)| / 2ε, with normal z (ECoFLaP; Sung et al. 2024).

    L is the cross-entropy of the answers; one z for every batch of at most 32 samples in all. The model is left as it
    came. Also returns what it cost. Raises PruneError where no sample has an answer.
    """
    began = time.perf_counter()
    answered = [sample for sample in samples if sample.answers][:_SAMPLES]
    if not answered:
        raise PruneError("ECoFLaP measures the loss of answers, but no search sample has one; take another formula")
    batches = [text_batch(model, answered[start : start + _BATCH]) for start in range(0, len(answered), _BATCH)]
    generator = torch.Generator().manual_seed(seed)
    blocks = blocks_of(model.layers())
    bar = progress.bar("sensitivity", total=sum(map(len, blocks.values())))
    scores = dict.fromkeys(blocks, 0.0)
    for block, layers in blocks.items():
        for layer in layers:
            scores[block] += sum(_slope(model, layer.name, batch, generator) for batch in batches)
            bar.advance()
    losses = 2 * sum(map(len, blocks.values()))
    tokens = losses * sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    return scores, Cost("ecoflap", losses, tokens, time.perf_counter() - began)


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
