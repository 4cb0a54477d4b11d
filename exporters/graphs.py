"""The three graphs of an ONNX export, in the layout of onnx-community and transformers.js: what each computes, and
the names and axes of what goes in and comes out. Knows no ONNX.

    vision_encoder         pixel_values -> image_features; some families have more of both, which vision.py says
    embed_tokens           input_ids -> inputs_embeds
    decoder_model_merged   inputs_embeds, attention_mask, position_ids, past_key_values.N.key/value
                           -> logits, present.N.key/value

One decoder serves prefill (a past of length 0) and decode. Its logits are those of each sequence's last token alone:
nothing else is needed to generate, and at prefill the head would cost as much as several blocks.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from optimum.utils.normalized_config import NormalizedTextConfigWithGQA
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from ..model import Model
from .attention import rotations_as_operators
from .decoder import DEEPSTACK, TOKEN_TYPES, decoder_of
from .graph import BATCH_SIZE, CACHE_ROWS_SIZE, DECODER, EMBED_TOKENS, Graph
from .skeleton import without_weights
from .vision import positions_of_tiles, vision_graph

# Sizes of the samples that tracing runs on; all differ, and none is 1, which would be taken for a constant.
_BATCH, _SEQUENCE, _PAST, _ROWS = 2, 3, 7, 4


class EmbedTokens(nn.Module):
    """The table of token embeddings."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embeddings = model.pretrained.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> Tensor:
        embeddings: Tensor = self.embeddings(input_ids)
        return embeddings


def graphs_of(model: Model) -> list[Graph]:
    """The three graphs, ready to trace: their parts and samples have shapes and no contents."""
    mode, positions = FakeTensorMode(allow_non_fake_inputs=True), positions_of_tiles(model)
    bare = without_weights(model, mode)
    with mode:
        graphs = [vision_graph(bare, positions), _embedding_graph(bare), _decoder_graph(bare)]
    return [replace(graph, weights=_names_in(bare, graph.part)) for graph in graphs]


def _embedding_graph(model: Model) -> Graph:
    return Graph(
        EMBED_TOKENS,
        EmbedTokens(model),
        (torch.zeros(_BATCH, _SEQUENCE, dtype=torch.long),),
        ({0: Dim("batch_size"), 1: Dim("sequence_length")},),
        ("input_ids",),
        ("inputs_embeds",),
    )


def _decoder_graph(model: Model) -> Graph:
    """inputs_embeds: (batch, sequence, hidden). attention_mask: (batch, past + sequence), padded on the right.

    position_ids: (batch, sequence), or (3, batch, sequence) where positions are of time, height and width.
    past: (rows, KV heads, past, head size). token_type_ids: (batch, sequence). deepstack_embeds: (features of the
    tower, batch, sequence, hidden). logits: (batch, 1, vocabulary), of every sequence's last token.
    """
    # Families name these values differently; optimum knows how.
    text, part = NormalizedTextConfigWithGQA(model.config.text_config), decoder_of(model)
    batch, sequence, past = Dim(BATCH_SIZE), Dim("sequence_length"), Dim("past_sequence_length")
    rows = Dim(CACHE_ROWS_SIZE)
    pairs = [f"{layer}.{kind}" for layer in range(text.num_layers) for kind in ("key", "value")]
    cached = (_ROWS, text.num_key_value_heads, _PAST, head_size(text.config))
    positions = torch.arange(_PAST, _PAST + _SEQUENCE).repeat(_BATCH, 1)
    in_space = model.arch.first_position is None
    more: dict[str, tuple[Tensor, dict[int, Dim]]] = {
        TOKEN_TYPES: (torch.zeros_like(positions), {0: batch, 1: sequence}),
        DEEPSTACK: (
            torch.zeros(_deepstack_layers(model), _BATCH, _SEQUENCE, text.hidden_size),
            {1: batch, 2: sequence},
        ),
    }
    told = [part.more] if part.more else []  # the tracer knows no empty list
    return Graph(
        DECODER,
        part,
        (
            torch.zeros(_BATCH, _SEQUENCE, text.hidden_size),
            torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.long),
            positions.repeat(3, 1, 1) if in_space else positions,
            [torch.zeros(cached) for _ in pairs],
            *([more[name][0] for name in names] for names in told),
        ),
        (
            {0: batch, 1: sequence},
            {0: batch, 1: Dim("total_sequence_length")},
            {1: batch, 2: sequence} if in_space else {0: batch, 1: sequence},
            [{0: rows, 2: past} for _ in pairs],
            *([more[name][1] for name in names] for names in told),
        ),
        (
            *("inputs_embeds", "attention_mask", "position_ids"),
            *(f"past_key_values.{pair}" for pair in pairs),
            *part.more,
        ),
        ("logits", *(f"present.{pair}" for pair in pairs)),
        tracing=partial(rotations_as_operators, part.language_model),
    )


def _deepstack_layers(model: Model) -> int:
    return len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))


def _names_in(model: Model, part: nn.Module) -> dict[str, str]:
    """What the model calls the parameters of a part. One that is tied to another goes by its own name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    own = {inner: names[id(each)] for inner, each in part.named_parameters(remove_duplicate=False)}
    return {inner: next((name for name in found if name.endswith(inner)), found[0]) for inner, found in own.items()}


def head_size(text_config: Any) -> int:
    """Width of one attention head."""
    return int(getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads)
