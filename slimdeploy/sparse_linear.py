"""torch.ops.slimdeploy.sparse_linear: y = x W^T with a packed weight, on the CPU. Importing this module defines it.

The arguments are the packed arrays themselves, so whatever holds them is copied, pickled, compiled and saved like
anything else made of tensors. What the kernels read instead, the weight in a layout of their own, is made by
`prepare`, or by the first product, and lives exactly as long as the tensor of values. Knows no module and no model.
"""

import ctypes
import logging
import sys
import threading
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import cache
from mmap import PAGESIZE
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.weak import WeakTensorKeyDictionary

from .kernels import library
from .layouts import held
from .packed import Encoding, PackedTensor, ValueType, unpack
from .packed_description import Description

log = logging.getLogger(__name__)

_ARRAY_TYPES = (torch.uint8, torch.int8, torch.uint16)
_UNNAMED = "argument of sparse_linear"
# Linux: free these pages until they are read again; what is not in a file is kept.
_MADV_PAGEOUT = 21

# Not torch.library.custom_op: its wrappers take 8 µs more a call, where a product of 2048 x 2048 takes about 100.
_torch_library: Any = torch.library  # most of it has no types
_LIBRARY = _torch_library.Library("slimdeploy", "DEF")
_LIBRARY.define(
    "sparse_linear(Tensor x, Tensor mask, Tensor values, Tensor scales, "
    "int columns, str value_type, int group, str pattern) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True)
class Weight:
    """A packed weight as the operator's arguments; shapes and types are those of `PackedTensor`."""

    mask: Tensor
    values: Tensor
    scales: Tensor
    columns: int
    encoding: Encoding
    pattern: str

    @property
    def description(self) -> tuple[int, ValueType, int, str]:
        """What the operator is told beside the arrays."""
        return self.columns, self.encoding.values, self.encoding.group, self.pattern

    def packed(self) -> PackedTensor:
        """The same memory as numpy arrays. Raises ValueError or TypeError for tensors that cannot be packed arrays."""
        for name, tensor in (("mask", self.mask), ("values", self.values), ("scales", self.scales)):
            if tensor.device.type != "cpu":
                raise ValueError(f"{name} is on {tensor.device}, but packed weights are multiplied on the CPU; move it")
            if tensor.dtype not in _ARRAY_TYPES:
                raise TypeError(f"{name} is of type {tensor.dtype}; packed arrays are uint8, int8 or uint16")
        arrays = (tensor.detach().numpy() for tensor in (self.mask, self.values, self.scales))
        return PackedTensor(self.scales.shape[0], self.columns, self.encoding, self.pattern, *arrays)


Product = Callable[[Tensor], Tensor]
"""(n, columns) to (n, rows), both float32 and contiguous."""


@dataclass(frozen=True)
class _Prepared:
    """A product with one weight, and what that weight was when the product was made."""

    product: Product
    mask: Tensor
    scales: Tensor
    description: tuple[int, ValueType, int, str]
    versions: tuple[int, ...]


_prepared: MutableMapping[Tensor, _Prepared] = WeakTensorKeyDictionary()
"""From a tensor of values to `_Prepared`; an entry goes with its tensor."""
_making = threading.Lock()


def prepare(weight: Weight, name: str) -> None:
    """Make what the products with this weight need, now instead of at the first one.

    Products notice when an array is written to, but not under `torch.inference_mode`: torch does not count what is
    written to the tensors that are made there. After that, call this again, which then makes everything anew.
    Raises ArtifactError that says what is wrong with the packed tensor `name`.
    """
    uncounted = weight.mask.is_inference() or weight.values.is_inference() or weight.scales.is_inference()
    with _making:
        if uncounted or _found(weight.mask, weight.values, weight.scales, weight.description) is None:
            _prepared[weight.values] = _prepare(weight, name)


def _found(mask: Tensor, values: Tensor, scales: Tensor, description: tuple[Any, ...]) -> Product | None:
    """The product of exactly this weight as it is now. Called for every product, so in few steps."""
    found = _prepared.get(values)
    if (
        found is not None
        and found.mask is mask
        and found.scales is scales
        and found.description == description
        and found.versions == _versions(mask, values, scales)
    ):
        return found.product
    return None


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    """They change when a tensor is written to, as by `load_state_dict`; inference tensors keep none: see `prepare`."""
    return tuple([0 if tensor.is_inference() else tensor._version for tensor in tensors])


def _prepare(weight: Weight, name: str) -> _Prepared:
    packed = weight.packed()
    packed.validate(name)
    product = _unpacked_product(packed) if library.library_file() is None else _kernel_product(packed)
    arrays = (weight.mask, weight.values, weight.scales)
    for array in arrays:
        _release_pages(array)
    return _Prepared(product, weight.mask, weight.scales, weight.description, _versions(*arrays))


def _kernel_product(packed: PackedTensor) -> Product:
    kernel = library.Linear(packed)
    matrix = Description(packed.rows, packed.columns, packed.encoding, packed.pattern, kernel.kept)
    for each in held([matrix]):
        # Without the share that is pruned: a searched policy has as many as matrices.
        _say_once(each.log_level, f"packed {each.values} weights: {each.how}")

    def product(x: Tensor) -> Tensor:
        return torch.from_numpy(kernel(x.detach().numpy(), threads=torch.get_num_threads()))

    return product


@cache
def _say_once(level: int, sentence: str) -> None:
    log.log(level, sentence)


def _unpacked_product(packed: PackedTensor) -> Product:
    """The same with plain torch, where the kernels were not built: slower, and with the memory of float32 weights."""
    _warn_of_unpacking()
    dense = torch.from_numpy(unpack(packed))

    def product(x: Tensor) -> Tensor:
        return linear(round_activations(x, packed.encoding.values), dense)

    return product


@cache
def _warn_of_unpacking() -> None:
    log.warning(
        "the compiled kernels are not installed: packed weights are unpacked to float32, which is slow and large; "
        "install g++ and then slimdeploy again, or install a wheel that holds them"
    )


def round_activations(x: Tensor, values: ValueType) -> Tensor:
    """The activations that weights stored as `values` are multiplied with. x: (..., columns), float32.

    Integer weights: s * q with s = a/127, q = round_half_even(x * 127/a), a = max|x| of the row; a row with NaN or
    infinity in it becomes NaN.
    """
    match values:
        case "bf16":
            return x.bfloat16().float()
        case "fp16":
            return x
        case "int8" | "int4":
            largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
            return torch.round(x * (127 / largest)) * (largest / 127)


def _release_pages(tensor: Tensor) -> None:
    """Give back the memory of an array that lies in a file; it is read from there again when it is asked for.

    Nothing is lost where it does not lie in a file: the kernel then keeps it, or swaps it out.
    """
    start = -(-tensor.data_ptr() // PAGESIZE) * PAGESIZE
    length = (tensor.data_ptr() + tensor.nbytes) // PAGESIZE * PAGESIZE - start
    if sys.platform == "linux" and length > 0:
        # Its result does not matter: a system that cannot do this keeps the pages.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_PAGEOUT)


def _refuse_activations(x: Tensor, columns: int) -> NoReturn:
    if x.device.type not in ("cpu", "meta"):
        raise ValueError(f"x is on {x.device}, but packed weights are multiplied on the CPU; use x.cpu()")
    if x.dtype != torch.float32:
        raise TypeError(f"x is of type {x.dtype}, but sparse_linear takes float32; use x.float()")
    raise ValueError(f"x has the shape {tuple(x.shape)}, but its last dimension must be the weight's {columns} columns")


# Also for devices other than the CPU, so that they get a sentence from here instead of the dispatcher's page.
@torch.library.impl(_LIBRARY, "sparse_linear", "CompositeExplicitAutograd")
def _sparse_linear(
    x: Tensor,
    mask: Tensor,
    values: Tensor,
    scales: Tensor,
    columns: int,
    value_type: ValueType,
    group: int,
    pattern: str,
) -> Tensor:
    shape = x.shape
    if not (x.is_cpu and x.dtype is torch.float32 and shape and shape[-1] == columns):
        _refuse_activations(x, columns)
    product = _found(mask, values, scales, (columns, value_type, group, pattern))
    if product is None:
        prepare(Weight(mask, values, scales, columns, Encoding(value_type, group), pattern), _UNNAMED)
        product = _found(mask, values, scales, (columns, value_type, group, pattern))
        assert product is not None
    rows = scales.shape[0]
    if not x.numel():
        return x.new_empty((*shape[:-1], rows))
    return product(x.contiguous().view(-1, columns)).view(*shape[:-1], rows)


def _shape_only(x: Tensor, _mask: Tensor, _values: Tensor, scales: Tensor, columns: int, *_: object) -> Tensor:
    """What torch.compile reckons with."""
    if x.device.type not in ("cpu", "meta") or x.dtype != torch.float32 or not x.shape or x.shape[-1] != columns:
        _refuse_activations(x, columns)
    return x.new_empty((*x.shape[:-1], scales.shape[0]))


_torch_library.register_fake("slimdeploy::sparse_linear", _shape_only, lib=_LIBRARY)
