"""The three graphs of an ONNX export, in the layout of onnx-community and transformers.js: what each computes, and
the names and axes of what goes in and comes out. Knows no ONNX.

    vision_encoder         pixel_values -> image_features; some families have more of both, which vision.py says
    embed_tokens           input_ids -> inputs_embeds
    decoder_model_merged   inputs_embeds, attention_mask, position_ids, past_key_values.N.key/value
                           -> logits, present.N.key/value

One decoder serves prefill (a past of length 0) and decode. Its logits are those of the last position alone: nothing
else is needed to generate, and at prefill the head would cost as much as several blocks.
"""

from typing import Any

import torch
from optimum.utils.normalized_config import NormalizedTextConfigWithGQA
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache

from ..model import Model
from .graph import DECODER, EMBED_TOKENS, VISION_ENCODER, Graph
from .vision import vision_graph

__all__ = ["DECODER", "EMBED_TOKENS", "VISION_ENCODER", "Graph", "graphs_of", "head_size"]

# Sizes of the samples that tracing runs on; all differ, and none is 1, which would be taken for a constant.
_BATCH, _SEQUENCE, _PAST = 2, 3, 7


class EmbedTokens(nn.Module):
    """The table of token embeddings."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embeddings = model.pretrained.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> Tensor:
        embeddings: Tensor = self.embeddings(input_ids)
        return embeddings


class Decoder(nn.Module):
    """The language model with its KV cache as plain tensors."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.language_model = model.module.get_submodule(model.arch.language_model)
        self.lm_head = model.module.get_submodule(model.arch.lm_head)

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Shapes as in `decoder_graph`; past and the outputs behind the logits alternate keys and values, by layer."""
        cache = DynamicCache(list(zip(past[0::2], past[1::2], strict=True)))
        states = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (self.lm_head(states[:, -1:]), *present)


def graphs_of(model: Model) -> list[Graph]:
    """The three graphs, ready to trace."""
    return [vision_graph(model), _embedding_graph(model), _decoder_graph(model)]


def _embedding_graph(model: Model) -> Graph:
    sample = torch.zeros(_BATCH, _SEQUENCE, dtype=torch.long, device=model.device)
    return Graph(
        EMBED_TOKENS,
        EmbedTokens(model),
        (sample,),
        ({0: Dim("batch_size"), 1: Dim("sequence_length")},),
        ("input_ids",),
        ("inputs_embeds",),
    )


def _decoder_graph(model: Model) -> Graph:
    """inputs_embeds: (batch, sequence, hidden). attention_mask: (batch, past + sequence).

    position_ids: (batch, sequence). past: (batch, KV heads, past, head size). logits: (batch, 1, vocabulary).
    """
    # Families name these values differently; optimum knows how.
    text = NormalizedTextConfigWithGQA(model.config.text_config)
    batch, sequence, past = Dim("batch_size"), Dim("sequence_length"), Dim("past_sequence_length")
    pairs = [f"{layer}.{kind}" for layer in range(text.num_layers) for kind in ("key", "value")]
    cached = torch.zeros(_BATCH, text.num_key_value_heads, _PAST, head_size(text.config), device=model.device)
    return Graph(
        DECODER,
        Decoder(model),
        (
            torch.zeros(_BATCH, _SEQUENCE, text.hidden_size, device=model.device),
            torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.long, device=model.device),
            torch.arange(_PAST, _PAST + _SEQUENCE, device=model.device).repeat(_BATCH, 1),
            [cached.clone() for _ in pairs],
        ),
        (
            {0: batch, 1: sequence},
            {0: batch, 1: Dim("total_sequence_length")},
            {0: batch, 1: sequence},
            [{0: batch, 2: past} for _ in pairs],
        ),
        ("inputs_embeds", "attention_mask", "position_ids", *(f"past_key_values.{pair}" for pair in pairs)),
        ("logits", *(f"present.{pair}" for pair in pairs)),
    )


def head_size(text_config: Any) -> int:
    """Width of one attention head."""
    return int(getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads)
