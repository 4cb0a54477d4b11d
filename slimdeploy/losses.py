"""What search and restoration measure alike: how a model continues the text behind the pictures.

Divergence from the dense model counts on question and answer tokens, cross-entropy on answer tokens. Knows nothing of
masks, policies or training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from .errors import PruneError
from .model import IGNORED_LABEL, Model, encode
from .samples import Sample


@dataclass(frozen=True)
class TextBatch:
    """Samples with their answers, as inputs and as what should follow.

    tail: number of last positions that hold all text behind the pictures; logits are taken there alone.
    weight: (samples, tail), 1 where the prediction counts. targets: (samples, tail), the answer's next token or -100.
    """

    inputs: dict[str, Tensor]
    tail: int
    weight: Tensor
    targets: Tensor

    @property
    def is_answer(self) -> Tensor:
        """(samples, tail) bool: the positions that predict a token of a known answer."""
        return self.targets != IGNORED_LABEL


def text_batch(model: Model, samples: Sequence[Sample]) -> TextBatch:
    inputs = dict(encode(model, samples, answers=True))
    labels = inputs.pop("labels")
    text = _is_text(model, inputs)
    tail = int(text.any(0).sum())
    following = torch.full_like(labels, IGNORED_LABEL)
    following[:, :-1] = labels[:, 1:]
    # What comes behind an answer's end is never asked for.
    is_end = (labels != IGNORED_LABEL) & (following == IGNORED_LABEL)
    counts = text & ~is_end
    if not model.arch.causal_prompt:
        answered = (labels != IGNORED_LABEL).any(1, keepdim=True)
        is_last = torch.arange(labels.shape[1], device=labels.device) == labels.shape[1] - 1
        counts &= (following != IGNORED_LABEL) | (is_last & ~answered)
    return TextBatch(inputs, tail, counts[:, -tail:].float(), following[:, -tail:])


def _is_text(model: Model, inputs: Mapping[str, Tensor]) -> Tensor:
    """(samples, tokens) bool: True behind the last token of a picture or sound, where question and answer stand."""
    is_media: Tensor = inputs["input_ids"] == model.media_token_id
    media_from_here_on = is_media.flip(1).cumsum(1).flip(1)
    return (media_from_here_on == 0) & inputs["attention_mask"].bool()


def text_logits(model: Model, batch: TextBatch) -> Tensor:
    """(samples, tail, vocabulary), float32."""
    logits: Tensor = model.module(**batch.inputs, use_cache=False, logits_to_keep=batch.tail).logits
    return logits[:, -batch.tail :].float()  # some families ignore logits_to_keep


def taught(logits: Tensor) -> Tensor:
    """Log-probabilities of the dense model, for `divergence`. Raises PruneError where they are not finite."""
    found = logits.log_softmax(-1)
    if bool(found.isnan().any()):  # what infinite logits give as well
        raise PruneError(
            "the dense model predicts NaN or infinity: its head or the norm before it is damaged, or model.dtype too "
            "narrow; take another checkpoint, or set model.dtype = 'float32'"
        )
    return found


def divergence(logits: Tensor, dense: Tensor, weight: Tensor) -> Tensor:
    """Mean over weighted positions of KL(dense ‖ model), in nats.

    logits: (samples, tail, vocabulary). dense: log-probabilities of the same shape. weight: (samples, tail).
    """
    per_token = kl_div(logits.log_softmax(-1), dense, reduction="none", log_target=True).sum(-1)
    return (per_token * weight).sum() / weight.sum()


def answer_loss(logits: Tensor, batch: TextBatch) -> Tensor:
    """Mean cross-entropy of the answers' tokens, in nats; 0 where no answer is known."""
    if not bool(batch.is_answer.any()):
        return logits.new_zeros(())
    return cross_entropy(logits[batch.is_answer], batch.targets[batch.is_answer])
