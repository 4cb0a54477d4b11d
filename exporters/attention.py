"""The attention of a traced language model: onnxruntime's GroupQueryAttention, positions rotated by RotaryEmbedding.

Given one buffer as past and as present, the former writes the new keys and values into it and copies no cache.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

_ATTENTION = "slimdeploy_onnx"
_ROTATE = "apply_rotary_pos_emb"


@dataclass(frozen=True)
class KeyValueCache:
    """What the attention of every layer reads beside its own queries, keys and values, and what it leaves.

    past, present: keys and values in turn, (rows, KV heads, tokens, head size); present by layer. last: index of every
    sequence's last token, (batch,), int32. length: tokens of the longest sequence, the past's too, a scalar of int32.
    """

    past: Sequence[Tensor]
    last: Tensor
    length: Tensor
    present: dict[int, list[Tensor]] = field(default_factory=dict)


def use_operators(language_model: nn.Module) -> None:
    """From now on the language model's attention is for tracing, and of no use in torch."""
    AttentionInterface.register(_ATTENTION, _attend)
    # transformers makes no mask for an attention that it does not know.
    config: Any = language_model.config
    config._attn_implementation = _ATTENTION


@contextmanager
def rotations_as_operators(language_model: nn.Module) -> Iterator[None]:
    """RotaryEmbedding is what is traced of the model's own rotations while the body runs, where they are the same."""
    modules = {sys.modules[type(part).__module__] for part in language_model.modules()}
    with ExitStack() as stack:
        for module in modules:
            own = getattr(module, _ROTATE, None)
            if own is not None and _rotates_halves(own):
                stack.enter_context(patch.object(module, _ROTATE, _rotate))
        yield


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    key_value_cache: KeyValueCache,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers calls attention: (batch, heads, sequence, head size) to (batch, sequence, heads, head size).

    attention_mask: (batch, 1, sequence, length), added to the products; without one attention is causal.
    """
    index: Any = module.layer_idx
    past = key_value_cache.past[2 * index : 2 * index + 2]
    heads, size = query.shape[1], query.shape[3]
    kv_heads = key.shape[1]
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scaling}
    if softcap is not None:
        attributes["softcap"] = softcap
    bias: list[Tensor | None] = []
    if attention_mask is not None:
        attributes["causal"] = 0
        bias = [None, None, None, attention_mask]  # no tables of rotations and no positions
    elif sliding_window is not None:
        attributes["local_window_size"] = sliding_window
    rows = [_as_rows(query), _as_rows(key), _as_rows(value)]
    present = (past[0].shape[0], kv_heads, past[0].shape[2] + key.shape[2], size)
    output, *new = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [*rows, *past, key_value_cache.last, key_value_cache.length, *bias],
        attributes,
        dtypes=(query.dtype,) * 3,
        shapes=(rows[0].shape, present, present),
        version=1,
    )
    key_value_cache.present[index] = new
    return output.view(query.shape[0], -1, heads, size), None


def _as_rows(heads: Tensor) -> Tensor:
    """(batch, heads, sequence, head size) to (batch, sequence, heads * head size)."""
    return heads.transpose(1, 2).flatten(2)


def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embeddings (Su et al. 2021) of the two halves of a head, as transformers asks for them.

    query, key: (batch, heads, sequence, head size). cos, sin: (batch, sequence, rotated size), both halves alike.
    """
    rotated_size = cos.shape[-1]
    cos, sin = cos[..., : rotated_size // 2], sin[..., : rotated_size // 2]
    rotated = []
    for heads in (query, key):
        count, size = heads.shape[1], heads.shape[3]
        rows = torch.onnx.ops.rotary_embedding(
            _as_rows(heads), cos, sin, num_heads=count, rotary_embedding_dim=rotated_size if rotated_size < size else 0
        )
        rotated.append(rows.view(rows.shape[0], -1, count, size).transpose(1, 2))
    return rotated[0], rotated[1]


def _rotates_halves(own: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    """Whether a model's own function computes what `_rotate` does: some rotate neighbours, not halves."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 3, 8, generator=generator) for _ in range(2))
    angles = torch.randn(1, 3, 4, generator=generator).repeat(1, 1, 2)
    arguments = query, key, angles.cos(), angles.sin()
    return all(torch.allclose(*pair, atol=1e-5) for pair in zip(own(*arguments), _rotate(*arguments), strict=True))
