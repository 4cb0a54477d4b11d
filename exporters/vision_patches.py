"""Pictures as patches in a row: where each patch lies, and attention among the patches of a frame or of a window.

All of it is arithmetic on the number of a patch and the values of the pictures' sizes, so that one graph serves every
size and number of pictures: shapes depend on the number of patches alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# onnxruntime holds the scores of all heads of one attention at once: 1 GB for 16 heads over 4096 patches.
_HEADS_AT_ONCE = 2


@dataclass(frozen=True)
class Patches:
    """Where each patch lies, all (patches,).

    height, width: of its picture. frame: the number of its frame's first patch, which tells frames apart.
    """

    row: Tensor
    column: Tensor
    height: Tensor
    width: Tensor
    frame: Tensor

    @classmethod
    def of(cls, grids: Tensor, count: int, merge: int) -> "Patches":
        """grids: (pictures, 3), frames, rows and columns of each, in patches.

        A block of merge * merge patches becomes one token, so its patches follow each other; blocks lie row by row.
        """
        number = torch.arange(count, device=grids.device)
        frames, heights, widths = grids.unbind(dim=1)
        sizes = frames * heights * widths
        ends = sizes.cumsum(dim=0)
        picture = (number[:, None] >= ends).sum(dim=1)
        height, width = heights[picture], widths[picture]
        in_frame = (number - (ends - sizes)[picture]) % (height * width)
        block, in_block = in_frame // merge**2, in_frame % merge**2
        blocks_across = width // merge
        return cls(
            row=block // blocks_across * merge + in_block // merge,
            column=block % blocks_across * merge + in_block % merge,
            height=height,
            width=width,
            frame=number - in_frame,
        )

    def window(self, side: int) -> Tensor:
        """(patches,): a number for each window of side * side patches, or fewer at the right and lower edges."""
        across = (self.width + side - 1) // side
        # A frame has no more windows than patches, so numbers of different frames differ.
        return self.frame + self.row // side * across + self.column // side


class FrameAttention:
    """Every patch sees those of its frame."""

    def __init__(self, frame: Tensor) -> None:
        self._mask = _mask(frame, frame)[None, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All (patches, heads, head size), in and out."""
        query, key, value = (states.transpose(0, 1)[None] for states in (query, key, value))
        some = [slice(first, first + _HEADS_AT_ONCE) for first in range(0, query.shape[1], _HEADS_AT_ONCE)]
        attended = [_attend(query[:, heads], key[:, heads], value[:, heads], self._mask) for heads in some]
        return torch.cat(attended, dim=1)[0].transpose(0, 1)


class WindowAttention:
    """Every patch sees those of its window. Patches of a window follow each other, `longest` of them at most.

    The row of patches is cut into pieces of `longest`. What a patch sees then lies in its own piece or in one beside
    it, so that the cost grows with the number of patches and not with its square.
    """

    def __init__(self, window: Tensor, longest: int) -> None:
        count = window.shape[0]
        first = torch.arange((count + longest - 1) // longest, device=window.device)[:, None] * longest
        query = first + torch.arange(longest, device=window.device)
        key = first + torch.arange(-longest, 2 * longest, device=window.device)
        # Beyond either end stands a copy of the patch there, whose key nobody sees.
        self._query, self._key = query.clamp(max=count - 1), key.clamp(0, count - 1)
        self._mask = _mask(window[self._query], torch.where(key == self._key, window[self._key], -1))[:, None]
        self._all = torch.arange(count, device=window.device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All (patches, heads, head size), in and out."""
        pieces = (_rows(query, self._query), _rows(key, self._key), _rows(value, self._key))
        query, key, value = (states.transpose(1, 2) for states in pieces)
        attended = _attend(query, key, value, self._mask)
        return attended.transpose(1, 2).flatten(0, 1).index_select(0, self._all)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """All (batch, heads, patches, head size); mask: (batch, 1, patches that look, patches that are seen)."""
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _rows(states: Tensor, index: Tensor) -> Tensor:
    """states[index], which would become a slower operator."""
    return states.index_select(0, index.flatten()).reshape(*index.shape, *states.shape[1:])


def _mask(query: Tensor, key: Tensor) -> Tensor:
    """(..., queries, keys), to be added to scores: 0 where numbers are the same.

    onnxruntime takes four times as long where a mask is boolean, and is slow to select numbers by one.
    """
    return (query[..., :, None] != key[..., None, :]).float() * torch.finfo(torch.float32).min
