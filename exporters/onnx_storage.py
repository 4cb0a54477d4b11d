"""In which form an ONNX export stores its matrices: float32, float16, packed, or quantised by onnxruntime's own tools.

Matrices are the weights that may be pruned, the head, and the table of token embeddings. All else (biases, norms, the
patch embedding, positions) stays float32: it is small.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, assert_never

import torch
from onnxscript import ir

from ..errors import ExportError
from ..model import Model
from ..packed import PackedTensor, pack
from ..packed_tensor import ALL_KEPT, ENCODINGS
from ..progress import Progress
from .job import ExportJob
from .onnx_edit import add_initializer, multiplied
from .onnx_packed import store_packed
from .onnx_table import TokenTable, token_table
from .packing import pack_weights
from .reference import Reference, packed_reference


class Storage(Protocol):
    """One form. Graphs have float32 weights under the model's own names when they come here."""

    @abstractmethod
    def store(self, model: ir.Model) -> ir.Model:
        """The graph with its matrices in this form; the one given is used up."""

    @abstractmethod
    def reference(self) -> Reference:
        """What torch must hold and round to compute the same, once every graph was stored."""


def storage_of(model: Model, job: ExportJob, progress: Progress) -> Storage:
    """As `export.onnx.weights` says. Raises ExportError for weights that the form cannot hold."""
    match weights := job.config.onnx.weights:
        case "dense-fp32":
            return Float32()
        case "dense-fp16":
            return Float16(model, token_table(model, "float16"))
        case "dense-int8" | "dense-int4":
            from .onnx_quantized import Method, Quantized

            method: Method = "dynamic" if weights == "dense-int8" else "blocks"
            return Quantized(method, matrices(model), model.arch.lm_head, token_table(model, "int8"))
        case "packed" | "packed-bf16" | "packed-int8" | "packed-int4":
            packed = pack_weights(model, job, progress)
            # The head decides between tokens and is read once per token like any matrix: eight bits, not four.
            head = "packed-bf16" if weights == "packed-bf16" else "packed-int8"
            if model.arch.lm_head not in packed:
                weight = model.linear(model.arch.lm_head).weight.detach().cpu().numpy()
                packed[model.arch.lm_head] = pack(weight, ENCODINGS[head], ALL_KEPT)
            return Packed(packed, token_table(model, "bfloat16" if weights == "packed-bf16" else "int8"))
        case other:
            assert_never(other)


def matrices(model: Model) -> list[str]:
    """Names of the linear layers whose weights are stored in the chosen form."""
    return list(dict.fromkeys([*(layer.name for layer in model.layers()), model.arch.lm_head]))


class Float32:
    """Zeros and all, as torch has them."""

    def store(self, model: ir.Model) -> ir.Model:
        return model

    def reference(self) -> Reference:
        return Reference()


@dataclass(frozen=True)
class Packed:
    """Packed matrices, multiplied by our operators."""

    packed: Mapping[str, PackedTensor]
    table: TokenTable

    def store(self, model: ir.Model) -> ir.Model:
        store_packed(model, self.packed)
        self.table.store(model.graph)
        return model

    def reference(self) -> Reference:
        reference = packed_reference(self.packed)
        return replace(reference, weights={**reference.weights, **self.table.weights()})


class Float16:
    """Half the file. onnxruntime multiplies no float16 on most CPUs, so it widens the weights when it loads them."""

    def __init__(self, model: Model, table: TokenTable) -> None:
        self._weights = {name: model.linear(name).weight.detach().cpu() for name in matrices(model)}
        self._table = table
        for name, weight in self._weights.items():
            if not torch.isfinite(weight.half()).all():
                raise ExportError(
                    f"{name} holds {float(weight.abs().max()):g}, beyond the range of float16; "
                    "set export.onnx.weights = 'packed-bf16' or 'dense-fp32'"
                )

    def store(self, model: ir.Model) -> ir.Model:
        for node in list(model.graph):
            if (name := multiplied(node)) in self._weights:
                halves = self._weights[name].half().numpy().T
                stored = add_initializer(model.graph, f"{name}.weight", ir.tensor(halves.copy()))
                cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
                model.graph.insert_before(node, cast)
                node.replace_input_with(1, cast.outputs[0])
        self._table.store(model.graph)
        return model

    def reference(self) -> Reference:
        weights = {f"{name}.weight": weight.half().float() for name, weight in self._weights.items()}
        return Reference({**weights, **self._table.weights()})
