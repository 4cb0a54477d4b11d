"""Where patches lie is where transformers puts them; attention in pieces is attention under a plain mask."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from slimdeploy.exporters.vision_patches import FrameAttention, Patches, WindowAttention
from slimdeploy.exporters.vision_qwen import stretched

MERGE, HEADS, HEAD_SIZE = 2, 3, 4

sides = st.integers(1, 9).map(lambda tokens: tokens * MERGE)
grids = st.lists(st.tuples(st.integers(1, 3), sides, sides), min_size=1, max_size=4).map(torch.tensor)


def patches_of(grid: Tensor) -> Patches:
    return Patches.of(grid, int(grid.prod(dim=1).sum()), MERGE)


@given(grids)
def test_patches_lie_where_transformers_puts_them(grid: Tensor) -> None:
    patches = patches_of(grid)
    expected = get_vision_position_ids(grid, MERGE)
    assert torch.equal(torch.stack([patches.row, patches.column], dim=1), expected)
    lengths = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
    assert torch.equal(patches.frame.unique(return_counts=True)[1], lengths)


@given(grids, st.integers(1, 5))
def test_windows_hold_the_patches_that_transformers_puts_into_them(grid: Tensor, tokens: int) -> None:
    index, ends = get_vision_window_index(grid, MERGE, window_size=tokens * MERGE * 14, patch_size=14)
    expected = [set(window.tolist()) for window in index.tensor_split(ends[1:-1].long() // MERGE**2)]
    window = patches_of(grid).window(tokens * MERGE)
    assert torch.equal(window[0 :: MERGE**2], window[MERGE**2 - 1 :: MERGE**2]), "a token lies in two windows"
    found: dict[int, set[int]] = {}
    for token, number in enumerate(window[:: MERGE**2].tolist()):
        found.setdefault(number, set()).add(token)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, expected))


@given(grids, st.integers(1, 8))
def test_learned_positions_are_stretched_as_transformers_stretches_them(grid: Tensor, side: int) -> None:
    table = torch.nn.Embedding(side**2, 3)
    index, weights = get_vision_interpolation_indices_and_weights(
        grid, side, align_corners=True, spatial_merge_size=MERGE
    )
    expected = (table(index) * weights[:, :, None]).sum(dim=1)
    torch.testing.assert_close(stretched(table, patches_of(grid)), expected)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=12), st.integers(0, 3))
@settings(max_examples=50)
def test_attention_in_pieces_is_attention_under_a_mask(lengths: list[int], more: int) -> None:
    window = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    states = torch.randn(3, len(window), HEADS, HEAD_SIZE, generator=torch.Generator().manual_seed(0))
    expected = plain_attention(*states, window[:, None] == window)
    torch.testing.assert_close(WindowAttention(window, max(lengths) + more)(*states), expected)
    torch.testing.assert_close(FrameAttention(window)(*states), expected)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", query, key) / HEAD_SIZE**0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(dim=-1), value)
