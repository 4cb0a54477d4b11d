"""A linear layer whose weight is packed: what `nn.Linear` becomes in a packed checkpoint.

Its state is the packed arrays under the names they have in the file (mask, values, scales) and the bias; arrays that a
file leaves out because they are empty are no part of it. Products are torch.ops.slimdeploy.sparse_linear's.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from . import sparse_linear
from .packed import Encoding, PackedTensor
from .packed_description import Description

ARRAYS = ("mask", "values", "scales")


class PackedLinear(nn.Module):
    """y = x W^T + b on the CPU, with activations rounded as the weight's encoding says. x: (..., in_features).

    x may be of any floating type and y is of the same; in between is float32.
    """

    mask: Tensor
    values: Tensor
    scales: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: sparse_linear.Weight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.columns, weight.scales.shape[0]
        self.encoding, self.pattern = weight.encoding, weight.pattern
        for name in ARRAYS:
            array = getattr(weight, name)
            self.register_buffer(name, array, persistent=array.numel() > 0)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @staticmethod
    def of(packed: PackedTensor, bias: Tensor | None = None) -> "PackedLinear":
        """Shares the arrays' memory."""
        mask, values, scales = (torch.from_numpy(array) for array in (packed.mask, packed.values, packed.scales))
        weight = sparse_linear.Weight(mask, values, scales, packed.columns, packed.encoding, packed.pattern)
        return PackedLinear(weight, bias)

    @staticmethod
    def empty(description: Description, bias: Tensor | None) -> "PackedLinear":
        """Without contents, to be loaded into; on the device "meta", which takes no memory."""
        mask, values, scales = (
            torch.empty(shape, dtype=getattr(torch, dtype), device="cpu" if 0 in shape else "meta")
            for dtype, shape in description.arrays().values()
        )
        weight = sparse_linear.Weight(
            mask, values, scales, description.columns, description.encoding, description.pattern
        )
        return PackedLinear(weight, bias)

    @property
    def weight_arrays(self) -> sparse_linear.Weight:
        return sparse_linear.Weight(self.mask, self.values, self.scales, self.in_features, self.encoding, self.pattern)

    def packed(self) -> PackedTensor:
        """The weight as numpy arrays, which share its memory."""
        return self.weight_arrays.packed()

    def prepare(self, name: str) -> None:
        """Check the arrays and make what products need, now instead of at the first product.

        Raises ArtifactError that says what is wrong with the layer `name`.
        """
        sparse_linear.prepare(self.weight_arrays, name)

    def forward(self, x: Tensor) -> Tensor:
        y: Any = torch.ops.slimdeploy.sparse_linear(
            x.float(),
            self.mask,
            self.values,
            self.scales,
            self.in_features,
            self.encoding.values,
            self.encoding.group,
            self.pattern,
        )
        if y.requires_grad and not torch.compiler.is_compiling():
            y.register_hook(_refuse_gradient)
        if self.bias is not None:
            y = y + self.bias
        result: Tensor = y.to(x.dtype)
        return result

    def __getstate__(self) -> dict[str, Any]:
        # torch 2.13 cannot read a pickled uint16 back: the bits travel as int16.
        return self.__dict__ | {"_buffers": _with_bits(self._buffers, torch.uint16, torch.int16)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        module: Any = super()
        module.__setstate__(state | {"_buffers": _with_bits(state["_buffers"], torch.int16, torch.uint16)})

    def extra_repr(self) -> str:
        encoding: Encoding = self.encoding
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"values={encoding.values!r}, group={encoding.group}, pattern={self.pattern!r}"
        )


def _with_bits(
    buffers: Mapping[str, Tensor | None], before: torch.dtype, after: torch.dtype
) -> dict[str, Tensor | None]:
    """The same buffers, those of one type seen as another of its size."""
    return {
        name: buffer.view(after) if buffer is not None and buffer.dtype == before else buffer
        for name, buffer in buffers.items()
    }


def _refuse_gradient(_: Tensor) -> NoReturn:
    raise RuntimeError("packed weights have no gradient; train the checkpoint that they were made from")
