"""What torch has to hold and to round so that it computes what an export computes, and how near they can come.

An export of float32 weights is compared with the model as it is. Any other is compared with a model that has the
weights which were stored, and rounds activations where the runtime rounds them: what is left is the order of summation.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ..model import Model
from ..packed import PackedTensor, ValueType, unpack
from ..sparse_linear import round_activations
from .graph import DECODER, VISION_ENCODER

Rounding = Literal["none", "bf16", "int8 rows", "int8 blocks", "uint8 tensor"]
_BLOCK = 128


@dataclass(frozen=True)
class Reference:
    """weights: stand in for the model's parameters of these names. rounding: of the inputs of these linear layers.

    graphs: names of the layers that each file rounds for. packed: matrices that must stand in the files as they are
    here, by the names of their layers. dense: the setting with which the weights would be stored as they are.
    rounding_error: what rounding was found to change, ||rounded - not rounded|| / ||rounded||, by graph.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    rounding: Mapping[str, Rounding] = field(default_factory=dict)
    graphs: Mapping[str, Collection[str]] = field(default_factory=dict)
    packed: Mapping[str, PackedTensor] = field(default_factory=dict)
    dense: str = "export.onnx.weights = 'dense-fp32'"
    rounding_error: Mapping[str, float] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        """What to do where an export differs from this."""
        return self.dense if self.weights else "export.format = 'checkpoint'"

    def max_relative_error(self, graph: str) -> float:
        """||y - reference|| / ||reference|| that a graph may have."""
        names = self.graphs.get(graph, ())
        usual = max((_MAX_RELATIVE_ERROR[self.rounding[name]] for name in names), default=_MAX_RELATIVE_ERROR["none"])
        return max(usual, min(_TIMES_ROUNDING_ERROR * self.rounding_error.get(graph, 0.0), _LARGEST_ERROR))

    @property
    def tie(self) -> float:
        """How far behind the best logit a token's may be and be as right, in standard deviations of all logits."""
        usual = max((_MAX_RELATIVE_ERROR[rounding] for rounding in self.rounding.values()), default=0.0)
        return _TIMES_TIE * max(usual, *map(self.max_relative_error, (VISION_ENCODER, DECODER)))

    @property
    def batches(self) -> bool:
        """Whether a prompt is answered in a batch as it is alone; not so where a whole tensor is rounded together."""
        return "uint8 tensor" not in self.rounding.values()


FLOAT32 = Reference()
"""The model as it is."""

ROUNDING_OF: Mapping[ValueType, Rounding] = {"bf16": "bf16", "fp16": "none", "int8": "int8 rows", "int4": "int8 rows"}


def packed_reference(packed: Mapping[str, PackedTensor]) -> Reference:
    """What products with packed weights compute: unpacked weights and activations rounded as those ask for."""
    return Reference(
        {f"{name}.weight": torch.from_numpy(unpack(weight)) for name, weight in packed.items()},
        {name: ROUNDING_OF[weight.encoding.values] for name, weight in packed.items()},
        packed=packed,
    )


# float32 and another order of summation give about 1e-6. Rounding makes more of that: where a value lies half-way
# between two steps it is rounded the other way, and each layer rounds again, until the two differ as if each had been
# rounded on its own, which is the square root of two times what rounding changes. Many blocks on, that may be more than
# the usual limits below; outputs that have nothing to do with each other differ by one, or by the square root of two.
_TIMES_ROUNDING_ERROR, _LARGEST_ERROR = 1.5, 0.3
_MAX_RELATIVE_ERROR: dict[Rounding, float] = {
    "none": 1e-4,
    "bf16": 2e-2,
    "int8 rows": 5e-2,
    "int8 blocks": 5e-2,
    "uint8 tensor": 5e-2,
}
# Of the error that logits may have: the best ones are a few standard deviations from their mean.
_TIMES_TIE = 5


@contextmanager
def standing_in(model: Model, reference: Reference) -> Iterator[None]:
    """The model as the reference has it while the body runs; tied weights are parted for as long.

    Weights are read once, or each time that they are multiplied where the model's own stay on disk.
    """
    weights = reference.weights if model.streamed else dict(reference.weights)
    with ExitStack() as stack:
        for name in weights:
            module = model.module.get_submodule(name.removesuffix(".weight"))
            if isinstance(module, nn.Linear):
                multiply = partial(_multiply, module, weights, name)
                stack.enter_context(patch.object(module, "forward", multiply))
            else:
                stack.enter_context(_replaced(module, "weight", weights[name]))
        for name, rounding in reference.rounding.items():
            hook = model.linear(name).register_forward_pre_hook(partial(_rounded, rounding))
            stack.callback(hook.remove)
        yield


def _multiply(linear: nn.Linear, weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return nn.functional.linear(x, weights[name].to(x), linear.bias)


@contextmanager
def _replaced(module: nn.Module, name: str, weight: Tensor) -> Iterator[None]:
    original = module.get_parameter(name)
    setattr(module, name, nn.Parameter(weight.to(original), requires_grad=False))
    try:
        yield
    finally:
        setattr(module, name, original)


def _rounded(rounding: Rounding, _: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
    return (_ROUND[rounding](arguments[0]),)


def _round_tensor(x: Tensor) -> Tensor:
    """ONNX's DynamicQuantizeLinear: 256 steps from the smallest to the largest value, zero among them."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    step = ((high - low) / 255).clamp(min=1e-30)
    zero = torch.round(-low / step).clamp(0, 255)
    return ((torch.round(x / step) + zero).clamp(0, 255) - zero) * step


def _round_blocks(x: Tensor) -> Tensor:
    """MatMulNBits with accuracy level 4: every row in blocks of 128 columns, 255 steps to a block."""
    columns = x.shape[-1]
    padded = nn.functional.pad(x, (0, -columns % _BLOCK))
    blocks = padded.reshape(*x.shape[:-1], -1, _BLOCK)
    return round_activations(blocks, "int8").reshape(padded.shape)[..., :columns]


_ROUND: dict[Rounding, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "bf16": lambda x: round_activations(x, "bf16"),
    "int8 rows": lambda x: round_activations(x, "int8"),
    "int8 blocks": _round_blocks,
    "uint8 tensor": _round_tensor,
}
