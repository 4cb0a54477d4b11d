"""onnxruntime's own linear layers: MatMul in fp32, dynamic int8, and MatMulNBits with 4 and 8 bits.

A session holds a chain of layers, so that one call into it carries the cost of Python for all of them.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from rounds import Call, Contender, Floats, Prepare

from . import Stack

LAYERS_PER_SESSION = 8
OPSET = 21
ROWS = "rows"
_BLOCK = 128


def fp32(stack: Stack, rng: np.random.Generator) -> Contender:
    return _contender("onnxruntime fp32", stack, 4 * stack.size**2, lambda: _chain(stack.size, rng))


def dynamic_int8(stack: Stack, rng: np.random.Generator) -> Contender:
    """quantize_dynamic with int8 weights, one scale per matrix; per channel takes as long, uint8 weights longer.

    The graph is quantize_dynamic's own, made from small matrices; those of the stack's size then take their places.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "quantized.onnx")
        small = _chain(8, rng)
        helper.set_model_props(small, {"onnx.quant.pre_process": "onnxruntime.quant"})  # else it logs advice
        quantize_dynamic(small, file, weight_type=QuantType.QInt8)
        graph = onnx.load(file)

    def model() -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        for weight in copy.graph.initializer:
            if weight.name.endswith("_quantized"):
                codes = rng.integers(-127, 128, (stack.size, stack.size), np.int8)
                weight.CopyFrom(numpy_helper.from_array(codes, weight.name))
        _set_shapes(copy, stack.size)
        return copy

    return _contender("onnxruntime dynamic int8", stack, stack.size**2, model)


def matmul_nbits(stack: Stack, bits: int, rng: np.random.Generator) -> Contender:
    """Symmetric blocks of 128; accuracy level 4: activations are int8, like ours."""
    size, groups = stack.size, stack.size // _BLOCK

    def layer(number: int) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
        weight, scales = f"weight_{number}", f"scales_{number}"
        node = helper.make_node(
            "MatMulNBits",
            [f"y_{number}", weight, scales],
            [f"y_{number + 1}"],
            domain="com.microsoft",
            K=size,
            N=size,
            bits=bits,
            block_size=_BLOCK,
            accuracy_level=4,
        )
        codes = rng.integers(0, 256, (size, groups, _BLOCK * bits // 8), np.uint8)
        return node, [
            numpy_helper.from_array(codes, weight),
            numpy_helper.from_array(_scales((size, groups), bits, size, rng), scales),
        ]

    layer_bytes = size * groups * (_BLOCK * bits // 8 + 4)
    return _contender(f"MatMulNBits int{bits}", stack, layer_bytes, lambda: _model(size, layer))


def _scales(shape: tuple[int, ...], bits: int, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Such that a chain's numbers neither grow nor vanish."""
    spread = 2**bits / 12**0.5 * size**0.5
    return (rng.uniform(0.9, 1.1, shape) / spread).astype(np.float32)


Layer = Callable[[int], tuple[onnx.NodeProto, Sequence[onnx.TensorProto]]]


def _chain(size: int, rng: np.random.Generator) -> onnx.ModelProto:
    def layer(number: int) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
        weight = f"weight_{number}"
        values = rng.standard_normal((size, size), np.float32) / np.float32(size**0.5)
        node = helper.make_node("MatMul", [f"y_{number}", weight], [f"y_{number + 1}"])
        return node, [numpy_helper.from_array(values, weight)]

    return _model(size, layer)


def _model(size: int, layer: Layer) -> onnx.ModelProto:
    layers = [layer(number) for number in range(LAYERS_PER_SESSION)]
    graph = helper.make_graph(
        [node for node, _ in layers],
        "chain",
        [helper.make_tensor_value_info("y_0", TensorProto.FLOAT, [ROWS, size])],
        [helper.make_tensor_value_info(f"y_{LAYERS_PER_SESSION}", TensorProto.FLOAT, [ROWS, size])],
        [weight for _, weights in layers for weight in weights],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _set_shapes(model: onnx.ModelProto, size: int) -> None:
    model.graph.ClearField("value_info")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = size


def _contender(name: str, stack: Stack, layer_bytes: int, model: Callable[[], onnx.ModelProto]) -> Contender:
    count = stack.chunks(layer_bytes, LAYERS_PER_SESSION)
    return Contender(
        name, layer_bytes, LAYERS_PER_SESSION, [_sessions(model().SerializeToString()) for _ in range(count)]
    )


def _sessions(model: bytes) -> Prepare:
    """One session per number of threads, made when it is first asked for and kept."""
    sessions: dict[int, onnxruntime.InferenceSession] = {}

    def prepare(x: Floats, threads: int) -> Call:
        if threads not in sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            # Its threads spin within a run, as they do by default, but not on into another contender's turn.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            sessions[threads] = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        session = sessions[threads]
        return lambda: session.run(None, {"y_0": x})

    return prepare
