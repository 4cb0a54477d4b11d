"""Attention for training: many conversations about one picture share the picture's tokens.

A training sequence is a prefix (the picture) and equally long segments. A token of a segment sees the prefix and its
own segment up to itself, never another segment, so the model meets each conversation as if it stood alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration

# Softmax over plain matrix products: on a CPU the backward pass of the fused kernels takes half of a training step.


@dataclass(frozen=True)
class Layout:
    """Lengths of a training sequence, in tokens."""

    prefix: int
    segments: int
    segment: int

    @property
    def length(self) -> int:
        return self.prefix + self.segments * self.segment

    def positions(self) -> Tensor:
        """(1, length). Every segment continues right after the prefix."""
        inside = torch.arange(self.prefix, self.prefix + self.segment)
        return torch.cat([torch.arange(self.prefix), inside.repeat(self.segments)])[None]


def use_training_attention(model: LlavaForConditionalGeneration, layout: Layout) -> None:
    """Let the language model attend by segments, and the vision tower by plain softmax."""
    _register("demo-segments", SegmentAttention(layout))
    _register("demo-plain", plain_attention)
    model.set_attn_implementation({"text_config": "demo-segments", "vision_config": "demo-plain"})


class SegmentAttention:
    """Causal attention within the prefix, and from each segment to the prefix and itself."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.prefix_mask = _causal_mask(layout.prefix)
        self.segment_mask = _causal_mask(layout.segment)

    def __call__(
        self, _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """query: (batch, heads, length, width).  key, value: (batch, fewer heads, length, width)."""
        batch, heads, _, width = query.shape
        prefix, segments, segment = self.layout.prefix, self.layout.segments, self.layout.segment
        query = query * options["scaling"]
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
        key_prefix, value_prefix = key[:, :, :prefix].transpose(-1, -2), value[:, :, :prefix]

        prefix_out = _softmax(query[:, :, :prefix] @ key_prefix + self.prefix_mask.to(query.dtype)) @ value_prefix

        apart = (batch * heads * segments, segment, -1)
        q, k, v = (x[:, :, prefix:].reshape(apart) for x in (query, key, value))
        to_prefix = (query[:, :, prefix:] @ key_prefix).reshape(apart)
        to_segment = torch.bmm(q, k.transpose(-1, -2)) + self.segment_mask.to(query.dtype)
        weights = _softmax(torch.cat([to_prefix, to_segment], dim=-1))
        from_prefix = weights[..., :prefix].reshape(batch, heads, segments * segment, prefix) @ value_prefix
        from_segment = torch.bmm(weights[..., prefix:], v).view(batch, heads, segments * segment, width)

        out = torch.cat([prefix_out, from_prefix + from_segment], dim=2)
        return out.transpose(1, 2).contiguous(), None


def plain_attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Everything sees everything: (batch, heads, length, width) each."""
    weights = torch.softmax((query * options["scaling"]) @ key.transpose(-1, -2), dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _causal_mask(length: int) -> Tensor:
    return torch.full((length, length), -1e9).triu(1)


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores.float(), dim=-1).to(scores.dtype)


def _register(name: str, attention: Any) -> None:
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, lambda *_, **__: None)
