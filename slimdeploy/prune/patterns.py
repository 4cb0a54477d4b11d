"""From scores to masks: which weights of a row, or of a group of M, are kept at a level.

Weights compete within their row or over the whole matrix, and within their group for N:M. Masks are nested over levels:
one rank per weight holds all of them, and a mask is a comparison.
"""

import torch
from torch import Tensor

from ..policy import Level, kept_per_row

_ROWS = 1024
"""Rows that are looked at together: what choosing takes beside them is a small part of a matrix."""


def mask_of(scores: Tensor, level: Level, per_row: bool = True) -> Tensor:
    """The mask that `mask_at` makes of `ranks`, for one level alone: weights are divided, not put in order.

    scores and result: (out, in).
    """
    rows, columns = scores.shape
    if not level.group:
        competing = scores if per_row else scores.reshape(1, -1)
        return largest(competing, kept_per_row(columns, level) * rows // len(competing)).view(rows, columns)
    whole = columns // level.group * level.group
    groups = largest(scores[:, :whole].reshape(-1, level.group), level.kept_per_group)
    rest = largest(scores[:, whole:], kept_per_row(columns - whole, level))
    return torch.cat([groups.view(rows, whole), rest], dim=1)


def largest(scores: Tensor, kept: int) -> Tensor:
    """True for the `kept` largest of each row; of equal ones, for the earlier."""
    if not 0 < kept < scores.shape[1]:
        return torch.full_like(scores, kept > 0, dtype=torch.bool)
    masks = []
    for part in torch.split(scores, _ROWS):
        least = part.topk(kept, dim=1, sorted=False).values.amin(1, keepdim=True)
        mask = part >= least
        tied = mask.sum(1) > kept
        if bool(tied.any()):
            mask[tied] = _places(part[tied]) < kept
        masks.append(mask)
    return torch.cat(masks)


def ranks(scores: Tensor, group: int, per_row: bool = True) -> Tensor:
    """Place of every weight in its row (group 0) or in its group of `group` columns; 0 is the most important.

    per_row: otherwise weights without a group compete over the whole matrix. scores: (out, in). Equal scores: the
    earlier weight wins. Returns whole numbers (out, in).
    """
    rows, columns = scores.shape
    if not (group or per_row):
        return _places(scores.reshape(1, -1)).view(rows, columns)
    size = group or columns
    whole = columns // size * size
    parts = [_places(scores[:, :whole].reshape(-1, size)).view(rows, whole)]
    if whole < columns:
        parts.append(_places(scores[:, whole:]))
    return torch.cat(parts, dim=1)


def _places(scores: Tensor) -> Tensor:
    """Rank within each row, largest first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    # Half the memory where it fits: a search holds the ranks of the whole model.
    dtype = torch.int16 if scores.shape[1] <= torch.iinfo(torch.int16).max else torch.int32
    places = torch.arange(scores.shape[1], dtype=dtype, device=scores.device).expand(scores.shape)
    return torch.empty_like(order, dtype=dtype).scatter_(1, order, places.contiguous())


def mask_at(rank: Tensor, level: Level, per_row: bool = True) -> Tensor:
    """The mask of a level: True where a weight is kept, exactly `kept_per_row` in every row, or in the mean of them.

    rank: what `ranks` gave for this level's group and the same `per_row`, (out, in).
    """
    rows, columns = rank.shape
    if not level.group:
        return rank < kept_per_row(columns, level) * (1 if per_row else rows)
    whole = columns // level.group * level.group
    rest = kept_per_row(columns - whole, level)
    return torch.cat([rank[:, :whole] < level.kept_per_group, rank[:, whole:] < rest], dim=1)
