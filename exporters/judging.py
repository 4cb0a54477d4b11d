"""What torch makes of an answer that an export gave: at every token, whether it would have said the same.

The whole answer is read at once, behind its prompt: torch multiplies each weight once for all tokens, where generating
them would multiply it once for each. That is what makes a model verifiable whose blocks stay on disk.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ExportError
from ..evaluate import plain_generation
from ..model import Model, encode
from ..samples import Sample
from .reference import FLOAT32, Reference

MAX_TOKENS = 16
"""Tokens compared of each answer."""


@dataclass(frozen=True)
class Judgement:
    """What torch would have said in place of each token of an answer, behind the answer's tokens before it.

    best: its tokens. behind: how clearly each beats the answer's: the difference of their logits, in standard
    deviations of all logits there, for logits mean the same whatever is added to all of them.
    """

    best: list[int]
    behind: list[float]


@torch.no_grad()
def judge(model: Model, prompt: Sample, answer: Sequence[int], stepwise: bool = False) -> Judgement:
    """Compare an answer, token ids and the one that ends it included, with what torch makes of the prompt.

    stepwise: token by token through the model's KV cache, for rounding that depends on what is multiplied together. So
    are answers judged that hold the token whose places features take: in a prompt, features would be missing for it.
    """
    stepwise = stepwise or model.media_token_id in answer
    logits = _logits_of_steps(model, prompt, answer) if stepwise else _logits_at_once(model, prompt, answer)
    logits = logits.double()
    best, tokens = logits.max(dim=-1), torch.tensor(answer, device=logits.device)
    behind = (best.values - logits.gather(1, tokens[:, None])[:, 0]) / logits.std(dim=-1).clamp(min=1e-30)
    return Judgement(best.indices.tolist(), behind.tolist())


def require_same_ends(model: Model, ends: Collection[int]) -> None:
    """Raises ExportError where other tokens end an export's answers than the model's: no token by itself tells."""
    own = end_ids(model)
    if own != set(ends):
        raise ExportError(
            f"the tokens {sorted(ends)} end an answer of the export, and {sorted(own)} one of {model.name}; "
            f"set {FLOAT32.remedy} and report this model"
        )


def end_ids(model: Model) -> frozenset[int]:
    """The tokens at which transformers ends an answer."""
    ends: Any = model.pretrained.generation_config.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def count_tie(prompt: Sample, answer: Sequence[int], judgement: Judgement, reference: Reference = FLOAT32) -> int:
    """0 when every token is torch's; 1 when torch could as well have taken the others.

    Raises ExportError for a token that torch would not have taken.
    """
    for step, (ours, theirs, behind) in enumerate(zip(answer, judgement.best, judgement.behind, strict=True)):
        if not behind < reference.tie:  # also where it is no number
            raise ExportError(
                f"on prompt {prompt.id} the export answers token {ours} at step {step} where torch answers "
                f"{theirs} (by a margin of {behind:.2g}); set {reference.remedy} and report this model"
            )
    return int(list(answer) != judgement.best)


@torch.no_grad()
def greedy_in_torch(model: Model, prompt: Sample) -> list[int]:
    """What the model itself answers, through its own forward and KV cache."""
    inputs = _inputs_of_generation(model, prompt)
    with plain_generation(model):
        tokens = model.pretrained.generate(**inputs, max_new_tokens=MAX_TOKENS)
    answer: list[int] = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    return answer


def _logits_at_once(model: Model, prompt: Sample, answer: Sequence[int]) -> Tensor:
    """The logits of each of the answer's tokens, (tokens, vocabulary), from one pass over prompt and answer."""
    inputs = encode(model, [prompt])
    shape = inputs["input_ids"].shape
    before = torch.tensor([answer[:-1]], dtype=torch.long, device=model.device)
    for name, given in inputs.items():
        if name == "input_ids":
            inputs[name] = torch.cat([given, before], dim=1)
        elif name == "position_ids":
            following = 1 + torch.arange(before.shape[1], device=model.device)
            inputs[name] = torch.cat([given, given[:, -1:] + following], dim=1)
        elif given.shape == shape:  # a mask, or kinds of tokens: where prompts see both ways, answers are of kind 1
            kind = 1 if name == "attention_mask" or not model.arch.causal_prompt else 0
            inputs[name] = torch.cat([given, torch.full_like(before, kind)], dim=1)
    logits: Tensor = model.module(**inputs, use_cache=False, logits_to_keep=len(answer)).logits
    return logits[0, -len(answer) :]  # some families ignore logits_to_keep


def _logits_of_steps(model: Model, prompt: Sample, answer: Sequence[int]) -> Tensor:
    """The logits of each of the answer's tokens, (tokens, vocabulary), from a generation that is made to say them."""
    inputs = _inputs_of_generation(model, prompt)
    length = inputs["input_ids"].shape[1]
    with plain_generation(model):
        found = model.pretrained.generate(
            **inputs,
            max_new_tokens=len(answer),
            prefix_allowed_tokens_fn=lambda _, tokens: [answer[len(tokens) - length]],
            return_dict_in_generate=True,
            output_logits=True,
        )
    return torch.cat(found.logits)


def _inputs_of_generation(model: Model, prompt: Sample) -> dict[str, Tensor]:
    """`generate` counts positions itself."""
    return {name: tensor for name, tensor in encode(model, [prompt]).items() if name != "position_ids"}
