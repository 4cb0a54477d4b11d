"""The three graphs of an ONNX export, in the layout of onnx-community and transformers.js: what each computes, and
the names and axes of what goes in and comes out. Knows no ONNX.

    vision_encoder         pixel_values -> image_features
    embed_tokens           input_ids -> inputs_embeds
    decoder_model_merged   inputs_embeds, attention_mask, position_ids, past_key_values.N.key/value
                           -> logits, present.N.key/value

One decoder serves prefill (a past of length 0) and decode. Its logits are those of each sequence's last token alone:
nothing else is needed to generate, and at prefill the head would cost as much as several blocks.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
from .skeleton import without_weights

VISION_ENCODER = "vision_encoder"
EMBED_TOKENS = "embed_tokens"
DECODER = "decoder_model_merged"

# Sizes of the samples that tracing runs on; all differ, and none is 1, which would be taken for a constant.
_BATCH, _SEQUENCE, _PAST = 2, 3, 7


@dataclass(frozen=True)
class Graph:
    """One graph to write.

    sample: arguments of `part` to trace with. axes: the named dynamic axes of each of them. weights: what the model
    calls the parameters of `part`. tracing: what must be so while it is traced.
    """

    name: str
    part: nn.Module
    sample: tuple[Any, ...]
    axes: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, str]
    tracing: Callable[[], AbstractContextManager[None]] = nullcontext


class VisionEncoder(nn.Module):
    """Vision tower, choice of its features, projector: pictures to tokens of the language model."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        config = model.config
        assert model.arch.feature_layer is not None, "the checks let families through that have one"
        (projector,) = model.arch.projector
        chosen = getattr(config, model.arch.feature_layer)
        self.tower = model.module.get_submodule(model.arch.vision_tower)
        self.projector = model.module.get_submodule(projector)
        self.chosen = [chosen] if isinstance(chosen, int) else list(chosen)
        self.first_token = 1 if config.vision_feature_select_strategy == "default" else 0

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(pictures, 3, height, width) to (pictures, image tokens, hidden); blocks behind the features are not used."""
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        features: Tensor = self.projector(torch.cat([states[i][:, self.first_token :] for i in self.chosen], dim=-1))
        return features


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
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    bare = without_weights(model, mode)
    with mode:
        return [_vision_graph(bare), _embedding_graph(bare), _decoder_graph(bare)]


def _vision_graph(model: Model) -> Graph:
    vision, part = model.config.vision_config, VisionEncoder(model)
    return Graph(
        VISION_ENCODER,
        part,
        (torch.zeros(_BATCH, vision.num_channels, vision.image_size, vision.image_size),),
        ({0: Dim("batch_size")},),
        ("pixel_values",),
        ("image_features",),
        _names_in(model, part),
    )


def _embedding_graph(model: Model) -> Graph:
    part = EmbedTokens(model)
    return Graph(
        EMBED_TOKENS,
        part,
        (torch.zeros(_BATCH, _SEQUENCE, dtype=torch.long),),
        ({0: Dim("batch_size"), 1: Dim("sequence_length")},),
        ("input_ids",),
        ("inputs_embeds",),
        _names_in(model, part),
    )


def _decoder_graph(model: Model) -> Graph:
    """inputs_embeds: (batch, sequence, hidden). attention_mask: (batch, past + sequence), padded on the right.

    position_ids: (batch, sequence), or (3, batch, sequence) where positions are of time, height and width.
    past: (batch, KV heads, past, head size). token_type_ids: (batch, sequence). deepstack_embeds: (features of the
    tower, batch, sequence, hidden). logits: (batch, 1, vocabulary), of every sequence's last token.
    """
    # Families name these values differently; optimum knows how.
    text, part = NormalizedTextConfigWithGQA(model.config.text_config), decoder_of(model)
    batch, sequence, past = Dim("batch_size"), Dim("sequence_length"), Dim("past_sequence_length")
    pairs = [f"{layer}.{kind}" for layer in range(text.num_layers) for kind in ("key", "value")]
    cached = (_BATCH, text.num_key_value_heads, _PAST, head_size(text.config))
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
            [{0: batch, 2: past} for _ in pairs],
            *([more[name][1] for name in names] for names in told),
        ),
        (
            *("inputs_embeds", "attention_mask", "position_ids"),
            *(f"past_key_values.{pair}" for pair in pairs),
            *part.more,
        ),
        ("logits", *(f"present.{pair}" for pair in pairs)),
        _names_in(model, part),
        partial(rotations_as_operators, part.language_model),
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
