"""What the linear layers see: the squared norm of every input feature over the calibration tokens.

Inputs come from the dense model. Knows no criterion and no policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import PruneError
from ..model import Model
from ..progress import Progress
from ..samples import Sample
from .walk import Choose, count_blocks, encode_all, valid_tokens, walk

_FILE = "statistics.safetensors"


@dataclass
class Stats:
    """input_sq_sum: (in,) per layer, sum of squared inputs over tokens. tokens: how many there were, per layer."""

    input_sq_sum: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        tensors = {f"input_sq_sum/{name}": tensor.contiguous() for name, tensor in self.input_sq_sum.items()}
        tensors |= {f"tokens/{name}": torch.tensor(count) for name, count in self.tokens.items()}
        save_file(tensors, folder / _FILE)

    @staticmethod
    def load(folder: Path) -> "Stats":
        tensors = load_file(folder / _FILE)
        return Stats(
            {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith("input_sq_sum/")},
            {name.partition("/")[2]: int(count) for name, count in tensors.items() if name.startswith("tokens/")},
        )

    def add(self, name: str, inputs: Tensor) -> None:
        """Count `inputs` (tokens, in) of a layer."""
        # float64: sums over millions of tokens must not depend on how they were batched.
        squares = inputs.double().square().sum(0).cpu()
        if not bool(torch.isfinite(squares).all()):
            raise PruneError(
                f"the inputs of {name} hold NaN or infinity; check the checkpoint's weights, or load it as float32"
            )
        self.input_sq_sum[name] = self.input_sq_sum.get(name, torch.zeros_like(squares)) + squares
        self.tokens[name] = self.tokens.get(name, 0) + inputs.shape[0]


def collect_stats(
    model: Model, samples: Sequence[Sample], batch_size: int, progress: Progress, choose: Choose = valid_tokens
) -> Stats:
    """Statistics of every prunable layer over questions, pictures and, where known, answers, in the dense model.

    choose: which tokens of the towers count. Raises PruneError where a layer's inputs are not finite, or where no
    sample shows a picture.
    """
    batches = encode_all(model, samples, batch_size)
    stats = Stats()
    bar = progress.bar("statistics", total=count_blocks(model))
    for block in walk(model, batches):
        block.hand_on(block.run(stats.add, choose))
        bar.advance()
    return stats
