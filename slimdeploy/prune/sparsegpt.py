"""Optimal brain surgery on one weight matrix: pruned weights go, the others make up for them, and may be rounded.

SparseGPT (Frantar and Alistarh 2023, algorithm 1): columns are treated from left to right; what a pruned or rounded
weight leaves undone is spread over the columns to its right by the inverse of the inputs' second moments. Knows no
model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..policy import Level, kept_per_row
from ..quantize import LARGEST_CODE, from_bf16, quantize
from .patterns import largest

BLOCK = 128
"""Columns whose errors are spread lazily over those behind them; as many share a scale where values are rounded."""
DAMPING = 0.01
"""Share of the mean second moment that is added to the diagonal."""
_LARGEST_DAMPING = 1.0
_SMALLEST_FACTOR = 256
_STRIP = 512


@dataclass(frozen=True)
class Curvature:
    """factor: (in, in), the upper Cholesky factor U of the inverse second moments, H⁻¹ = Uᵀ U.

    dead: (in,) bool, inputs that were zero on every token. damping: the share that it took to factorise H.
    """

    factor: Tensor
    dead: Tensor
    damping: float


def curvature(moments: Tensor) -> Curvature | None:
    """moments: (in, in), Σ x xᵀ over tokens, float32, of which the upper triangle is read; becomes the factor.

    The damping is raised tenfold, up to the whole mean, until H can be inverted; None where that does not help.
    """
    dead = moments.diagonal() == 0
    moments.diagonal()[dead] = 1
    mean = float(moments.diagonal().mean())
    damping = DAMPING
    # What a try that fails has overwritten: the upper triangle, in strips.
    kept = [moments[start : start + _STRIP, start:].clone() for start in range(0, len(moments), _STRIP)]
    while damping <= _LARGEST_DAMPING:
        moments.diagonal().add_(damping * mean)
        if _factorise(moments):
            return Curvature(moments, dead, damping)
        for strip in kept:
            start = len(moments) - strip.shape[1]
            moments[start : start + _STRIP, start:] = strip
        damping *= 10
    return None


def _factorise(matrix: Tensor) -> bool:
    """Make U of the upper triangle of H, in place, where H⁻¹ = Uᵀ U. False where H is not positive definite.

    By halves, so that nearly all work is matrix products: with H = [A B; Bᵀ C], U's lower half U₂ is C's, its upper one
    U₁ that of A - X Xᵀ, where X = B U₂ᵀ, and between them stands -U₁ X U₂.
    """
    size = len(matrix)
    if size <= _SMALLEST_FACTOR:
        return _factorise_small(matrix)
    half = size // 2
    first, between, second = matrix[:half, :half], matrix[:half, half:], matrix[half:, half:]
    if not _factorise(second):
        return False
    x = between @ second.t()
    first.addmm_(x, x.t(), alpha=-1)
    if not _factorise(first):
        return False
    x = first @ x  # without the old one, and without a third of their size
    torch.mm(x, second, out=between).neg_()
    matrix[half:, :half] = 0
    return True


def _factorise_small(matrix: Tensor) -> bool:
    # P H P = L Lᵀ, where P turns the order round, makes P L P upper and its inverse the factor of H⁻¹.
    lower, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if int(failed) or not bool(lower.isfinite().all()):
        return False
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    matrix.copy_(torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True))
    return True


def saliency(weight: Tensor, factor_diagonal: Tensor) -> Tensor:
    """w² / U_cc², the error that removing a weight leaves when those to its right make up for it. weight: (out, in)."""
    return (weight / factor_diagonal).square()


def sparsegpt(weight: Tensor, known: Curvature, level: Level, per_row: bool = True) -> tuple[Tensor, Tensor]:
    """The matrix at a level, float32, and its mask; both (out, in), a column of them in one piece.

    weight: (out, in). per_row: every row keeps the same number in each block of columns; otherwise, as published, a
    block's weights compete over all rows. Each row (or the matrix) keeps what `policy.kept_per_row` says. With values,
    survivors end on a grid of one bf16 scale for 128 columns of a row, which an export finds again for int4 where the
    pattern is unstructured; otherwise it may take another one, about as fine.
    """
    left = weight.new_empty(weight.shape[::-1], dtype=torch.float32).copy_(weight.t())
    left[known.dead] = 0
    mask = torch.ones_like(left, dtype=torch.bool)
    for start, end in _blocks(weight.shape[1], level):
        factor = known.factor[start:end, start:end]
        errors = _prune_block(
            left[start:end],
            mask[start:end],
            factor,
            _Quota(level, start, weight.shape[1], 1 if per_row else len(weight)),
        )
        left[end:].addmm_(known.factor[start:end, end:].t(), errors, alpha=-1)
    return left.t(), mask.t()


@dataclass(frozen=True)
class _Quota:
    """How many weights stay of an unstructured matrix, in a block that begins at column `start` of `columns`.

    rows: among which weights compete.
    """

    level: Level
    start: int
    columns: int
    rows: int

    def kept(self, size: int) -> int:
        """Weights that the competing rows keep together among the next `size` columns."""
        return self._kept_before(self.start + size) - self._kept_before(self.start)

    def _kept_before(self, column: int) -> int:
        return round(self.rows * kept_per_row(self.columns, self.level) * column / self.columns)


def _blocks(columns: int, level: Level) -> Iterator[tuple[int, int]]:
    """Ranges of columns; no group of an N:M pattern is cut, nor one that shares a scale."""
    size = BLOCK
    if level.group:
        size = math.lcm(BLOCK, level.group) if level.values else max(BLOCK // level.group, 1) * level.group
    for start in range(0, columns, size):
        yield start, min(start + size, columns)


def _prune_block(left: Tensor, mask: Tensor, factor: Tensor, quota: _Quota) -> Tensor:
    """Treat the columns of a block, in place. left, mask: (columns, out). Returns errors over U_cc, (columns, out)."""
    errors = torch.empty_like(left)
    level, diagonal = quota.level, factor.diagonal()[:, None]
    if level.sparsity and not level.group:
        _choose(mask, saliency(left, diagonal), quota.kept(len(left)), per_row=quota.rows == 1)
    scales = None
    for column, (weights, kept) in enumerate(zip(left, mask, strict=True)):
        if level.sparsity and level.group and column % level.group == 0:
            group = slice(column, column + level.group)
            _choose(
                mask[group], saliency(left[group], diagonal[group]), kept_per_row(len(left[group]), level), per_row=True
            )
        if level.values and (quota.start + column) % BLOCK == 0:
            scales = _scales(left[column : column + BLOCK] * mask[column : column + BLOCK], level)
        pruned = weights * kept
        if scales is not None:
            largest = LARGEST_CODE[level.values]
            pruned = (pruned / scales).round_().clamp_(-largest, largest) * scales
        torch.div(weights - pruned, factor[column, column], out=errors[column])
        left[column + 1 :].addr_(factor[column, column + 1 :], errors[column], alpha=-1)
        weights.copy_(pruned)
    return errors


def _choose(mask: Tensor, scores: Tensor, kept: int, per_row: bool) -> None:
    """Keep the best `kept` of each row, or of all rows together. mask, scores: (columns, out)."""
    if per_row:
        mask.copy_(largest(scores.t().contiguous(), kept).t())
    else:
        mask.copy_(largest(scores.reshape(1, -1), kept).view_as(mask))


def _scales(weight: Tensor, level: Level) -> Tensor:
    """(out,), those that an export would take for a group of these weights, (columns, out).

    Where N:M masks are chosen group by group, most of them are still to come, and the scale is that of more weights.
    """
    _, scales = quantize(weight.t().contiguous().cpu().numpy(), LARGEST_CODE[level.values], 0)
    return torch.from_numpy(from_bf16(scales)[:, 0]).to(weight)
