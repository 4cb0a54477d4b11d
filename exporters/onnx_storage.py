"""In which form an ONNX export stores which matrix, and the writing of a graph in these forms.

Matrices are the weights that may be pruned, the head, and the table of token embeddings. All else (biases, norms, the
patch embedding, positions) stays float32: it is small.
"""

from pathlib import Path
from typing import Any, Literal, assert_never

from onnxscript import ir

from ..config import OnnxConfig, OnnxWeights
from ..model import Model
from ..packed_tensor import ALL_KEPT, ENCODINGS
from .graph import EMBED_TOKENS
from .job import ExportJob
from .onnx_attention import keep_their_attention, use_own_attention
from .onnx_data import DataFile, Sums
from .onnx_edit import multiplied
from .onnx_forms import Blocks, Dynamic, Float16, Float32, Form, Product
from .onnx_packed import Packed
from .onnx_table import TableType, store_table
from .trace import is_weight


def forms_of(model: Model, job: ExportJob) -> dict[str, Form]:
    """How each matrix is stored, by the name of its layer. Raises ExportError where neither setting nor policy says."""
    settings = job.config.onnx
    forms: dict[str, Form] = {}
    for layer in model.layers():
        setting = settings.weights if layer.tower == "language" else settings.vision_weights
        forms[layer.name] = _form(setting, layer.name, job)
    # The head decides between tokens and is read once per token like any matrix: eight bits, not four, unless asked.
    head = model.arch.lm_head
    forms.setdefault(head, _head(settings, head, job))
    return forms


def _form(setting: OnnxWeights, name: str, job: ExportJob) -> Form:
    match setting:
        case "dense-fp32":
            return Float32()
        case "dense-fp16":
            return Float16()
        case "dense-int8":
            return Dynamic()
        case "dense-int4":
            return Blocks(4)
        case "packed" | "packed-bf16" | "packed-int8" | "packed-int4":
            return Packed(job.encoding(name, setting), job.pattern(name))
        case _:
            assert_never(setting)


def _head(settings: OnnxConfig, name: str, job: ExportJob) -> Form:
    ours = settings.weights in ("packed", "packed-int8", "packed-int4")
    if settings.head == "auto" and not ours and settings.weights != "dense-int4":
        return _form(settings.weights, name, job)
    bits: Literal[4, 8] = 4 if settings.head == "int4" else 8
    return Packed(ENCODINGS[f"packed-int{bits}"], ALL_KEPT) if ours else Blocks(bits)


def table_type(settings: OnnxConfig) -> TableType:
    """What the token table is stored as."""
    if settings.embeddings != "auto":
        return settings.embeddings
    match settings.weights:
        case "dense-fp32":
            return "float32"
        case "dense-fp16":
            return "float16"
        case "packed-bf16":
            return "bfloat16"
        case _:
            return "int8"


def token_table(model: Model) -> str:
    """The path of the module that holds the table."""
    table: Any = model.pretrained.get_input_embeddings()
    return next(str(name) for name, module in model.module.named_modules() if module is table)


def write(traced: ir.Model, model: Model, job: ExportJob, file: Path) -> Sums:
    """Write a graph, its weights in their forms beside it. Never more than one of them is in memory.

    Returns what `require_as_written` compares.
    """
    forms, table = forms_of(model, job), token_table(model)
    if any(isinstance(form, Packed) for form in forms.values()):
        use_own_attention(traced)
    else:
        keep_their_attention(traced)
    with DataFile(file) as data:
        if file.stem == EMBED_TOKENS:
            store_table(traced.graph, table, model.weight(f"{table}.weight"), table_type(job.config.onnx), data)
        for node in list(traced.graph):
            name = multiplied(node)
            if name in forms:
                forms[name].store(Product(traced, node, name, data.add), model.weight(f"{name}.weight"))
        for value in traced.graph.initializers.values():
            if is_weight(value):
                value.const_value = data.add(str(value.name), _as_it_is(model, value))
        ir.save(traced, file)
    return data.sums


def _as_it_is(model: Model, value: ir.Value) -> ir.TensorProtocol:
    weight = model.weight(str(value.name).removesuffix(".transposed"))
    return ir.tensor(weight.T.copy() if value.meta.get("transposed") else weight, name=value.name)
