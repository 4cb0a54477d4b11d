"""What the linear layers see over the calibration tokens, summed up as the criteria want it.

Inputs come from the dense model. Knows no criterion and no policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import Criterion
from ..errors import PruneError
from ..model import Model
from ..progress import Progress
from ..samples import Sample
from .finite import finite_weight
from .moments import Moments, diagonal
from .sparsegpt import DAMPING
from .tokens import text_and_drifting
from .walk import Walk, encode_all

_FILE = "statistics.safetensors"
_TOKENS = 512


@dataclass
class Stats:
    """By layer. input_sq_sum: (in,), sum of squared inputs over tokens. tokens: how many there were.

    factor_diagonal: (in,), diagonal of the factor of the inputs' inverse second moments; for SparseGPT alone.
    """

    input_sq_sum: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    factor_diagonal: dict[str, Tensor] = field(default_factory=dict)
    _last: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)

    def save(self, folder: Path) -> None:
        tensors = {f"input_sq_sum/{name}": tensor.contiguous() for name, tensor in self.input_sq_sum.items()}
        tensors |= {f"tokens/{name}": torch.tensor(count) for name, count in self.tokens.items()}
        # Copies: layers with the same inputs share theirs, which safetensors takes for a mistake.
        tensors |= {f"factor_diagonal/{name}": tensor.clone() for name, tensor in self.factor_diagonal.items()}
        save_file(tensors, folder / _FILE)

    @staticmethod
    def load(folder: Path) -> "Stats":
        by_kind: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(folder / _FILE).items():
            kind, _, name = key.partition("/")
            by_kind.setdefault(kind, {})[name] = tensor
        tokens = {name: int(count) for name, count in by_kind["tokens"].items()}
        return Stats(by_kind["input_sq_sum"], tokens, by_kind.get("factor_diagonal", {}))

    def add(self, name: str, inputs: Tensor) -> None:
        """Count `inputs` (tokens, in) of a layer."""
        if self._last is None or self._last[0] is not inputs:
            self._last = inputs, _squares(inputs)
        squares = self._last[1]
        if not bool(torch.isfinite(squares).all()):
            raise PruneError(
                f"the inputs of {name} hold NaN or infinity; check the checkpoint's weights, or load it as float32"
            )
        self.input_sq_sum[name] = self.input_sq_sum.get(name, torch.zeros_like(squares)) + squares
        self.tokens[name] = self.tokens.get(name, 0) + inputs.shape[0]


def _squares(inputs: Tensor) -> Tensor:
    """Σ x² over tokens, (in,), on the CPU. inputs: (tokens, in).

    In float64, because sums over millions of tokens must not depend on how they were batched, but never all at once.
    """
    parts = [part.double().square_().sum(0) for part in torch.split(inputs, _TOKENS)]
    return torch.stack(parts).sum(0).cpu()


def collect_stats(
    model: Model, samples: Sequence[Sample], criterion: Criterion, batch_size: int, progress: Progress
) -> Stats:
    """What a criterion wants to know of every prunable layer over questions, pictures and, where known, answers.

    The model is dense. Raises PruneError where a layer's weights or inputs are not finite, or where no sample shows a
    picture.
    """
    stats = Stats()
    raised: dict[str, float] = {}
    walk = Walk(model, encode_all(model, samples, batch_size))
    for block in progress.track(walk, "statistics", total=len(walk)):
        moments = Moments()

        def observe(name: str, inputs: Tensor, moments: Moments = moments) -> None:
            stats.add(name, inputs)
            if criterion == "sparsegpt":
                moments.add(name, inputs)

        with block.resident():
            for name in block.layers():
                finite_weight(model, name)  # or the inputs of the next layer would be blamed
            tokens = text_and_drifting(block.calls, block.run()) if criterion == "atv" else None
            block.hand_on(block.run(observe, tokens))
        for names, known in moments.curvatures(progress):
            stats.factor_diagonal |= dict.fromkeys(names, diagonal(known))
            if known.damping > DAMPING:
                raised |= dict.fromkeys(names, known.damping)
    if raised:
        progress.note(
            f"SparseGPT's damping was raised from {DAMPING:.0%} to as much as {max(raised.values()):.0%} for "
            f"{len(raised)} of {len(stats.factor_diagonal)} layers, such as {min(raised)}: the second moments of their "
            "inputs could not be inverted."
        )
    return stats
