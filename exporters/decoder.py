"""The decoder: the language model with its KV cache as inputs and outputs, for prefill and decode alike.

Families differ in what it is told beside embeddings, mask, positions and past.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model import Model
from .attention import KeyValueCache, use_operators

TOKEN_TYPES, DEEPSTACK = "token_type_ids", "deepstack_embeds"


class Decoder(nn.Module):
    """The language model and its head. Made of a model that is only traced: its attention is of no use in torch.

    more: names of the inputs behind the past, which this kind of decoder has beside the others.
    """

    more: tuple[str, ...] = ()

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.language_model = model.module.get_submodule(model.arch.language_model)
        self.lm_head = model.module.get_submodule(model.arch.lm_head)
        use_operators(self.language_model)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[Tensor],
        more: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """Shapes as in `graphs`. The outputs behind the logits alternate keys and values, by layer."""
        lengths = attention_mask.sum(dim=1)
        longest = torch.full((), attention_mask.shape[1], dtype=torch.int32)
        cache = KeyValueCache(past, (lengths - 1).int(), longest)
        states = self.language_model(
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            use_cache=False,
            key_value_cache=cache,
            **self.told(attention_mask, more),
        ).last_hidden_state
        # The first run over a batch has all of its tokens; a later one has one of each, or more of a single sequence.
        last = lengths.clamp(max=inputs_embeds.shape[1]) - 1
        states = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[-1]))
        present = (tensor for layer in sorted(cache.present) for tensor in cache.present[layer])
        return (self.logits(states), *present)

    def told(self, _attention_mask: Tensor, _more: Sequence[Tensor], /) -> dict[str, Any]:
        """What the language model is called with beside what every one is."""
        return {}

    def logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(states)
        return logits


class BothWaysDecoder(Decoder):
    """Runs of tokens of type 1 see each other both ways: Gemma 3's pictures, all of PaliGemma's prompt.

    Such a run is never parted: its tokens are new together.
    """

    more = (TOKEN_TYPES,)

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        text = model.config.text_config
        self.window = getattr(text, "sliding_window", None)
        # The families' own heads cap; Gemma 3's does not, whatever its configuration says.
        self.cap = getattr(text, "final_logit_softcapping", None) if model.arch.model_type == "paligemma" else None

    def told(self, attention_mask: Tensor, more: Sequence[Tensor], /) -> dict[str, Any]:
        seen, near = self._seen(attention_mask, more[0])
        biases = {"full_attention": _as_bias(seen), "sliding_attention": _as_bias(seen & near)}
        return {"attention_mask": biases if self.window is not None else biases["full_attention"]}

    def _seen(self, attention_mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens every new one sees, and which of all are in its window: (batch, sequence, length)."""
        new, length = types.shape[1], attention_mask.shape[1]
        first = (attention_mask.sum(dim=1, keepdim=True) - new).clamp(min=0)
        queries = (first + torch.arange(new))[:, :, None]
        keys = torch.arange(length)[None, None]
        # Every token of a run has the number of the run, all others have none.
        before = nn.functional.pad(types, (1, 0))[:, :-1]
        runs = ((types == 1) & (before != 1)).cumsum(dim=1) * types
        place = torch.arange(length) - first
        is_new = (place >= 0) & (place < new)
        runs_of_keys = runs.gather(1, place.clamp(min=0, max=new - 1)) * is_new
        together = (runs[:, :, None] == runs_of_keys[:, None]) & (runs[:, :, None] > 0)
        return (keys <= queries) | together, keys > queries - (self.window or 0)

    def logits(self, states: Tensor) -> Tensor:
        logits = super().logits(states)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class DeepstackDecoder(Decoder):
    """Features of pictures are added to what the first blocks put out: (blocks, batch, sequence, hidden), else zero."""

    more = (DEEPSTACK,)

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        text: Any = self.language_model
        text._deepstack_process = lambda states, _, features: states + features

    def told(self, _attention_mask: Tensor, more: Sequence[Tensor], /) -> dict[str, Any]:
        return {"deepstack_visual_embeds": more[0]}


def _as_bias(seen: Tensor) -> Tensor:
    """What is added to the products of queries and keys: (batch, 1, sequence, length)."""
    hidden = torch.finfo(torch.float32).min / 2  # a sum with it is no infinity
    return torch.where(seen, 0.0, hidden)[:, None]


def decoder_of(model: Model) -> Decoder:
    match model.arch.model_type:
        case "gemma3" | "paligemma":
            return BothWaysDecoder(model)
        case "qwen3_vl":
            return DeepstackDecoder(model)
        case _:
            return Decoder(model)
