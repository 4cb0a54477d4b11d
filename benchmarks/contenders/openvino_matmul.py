"""OpenVINO's linear layer with compressed weights of 4 or 8 bits, where OpenVINO is installed.

The graph is what its tools write for such a weight: codes, converted and scaled per group, into a MatMul. Whether
activations are quantised too is left to its own default.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from rounds import Call, Contender, Floats, Prepare

from . import Stack

if TYPE_CHECKING:
    import openvino

LAYERS_PER_MODEL = 8
_GROUP = 128


def available() -> bool:
    return find_spec("openvino") is not None


def contenders(stack: Stack, bits: int, rng: np.random.Generator) -> list[Contender]:
    if not available():
        return []
    layer_bytes = stack.size**2 * bits // 8 + 4 * stack.size**2 // _GROUP
    chunks = [_models(_model(stack.size, bits, rng)) for _ in range(stack.chunks(layer_bytes, LAYERS_PER_MODEL))]
    return [Contender(f"openvino int{bits}", layer_bytes, LAYERS_PER_MODEL, chunks)]


def _model(size: int, bits: int, rng: np.random.Generator) -> "openvino.Model":
    import openvino
    from openvino import opset13 as ops

    shape = [size, size // _GROUP, _GROUP]
    inputs = last = ops.parameter([-1, size], np.float32)
    spread = 2**bits / 12**0.5 * size**0.5
    for _ in range(LAYERS_PER_MODEL):
        codes = openvino.Tensor(openvino.Type.i4 if bits == 4 else openvino.Type.i8, shape)
        memory = codes.data.view(np.uint8)
        memory[...] = rng.integers(0, 256, memory.shape, np.uint8)
        scales = (rng.uniform(0.9, 1.1, (*shape[:2], 1)) / spread).astype(np.float32)
        weight = ops.multiply(ops.convert(ops.constant(codes), np.float32), ops.constant(scales))
        last = ops.matmul(last, ops.reshape(weight, [size, size], special_zero=False), False, True)
    return openvino.Model([last], [inputs])


def _models(model: "openvino.Model") -> Prepare:
    """One compiled model per number of threads, made when it is first asked for and kept."""
    import openvino

    requests: dict[int, openvino.InferRequest] = {}

    def prepare(x: Floats, threads: int) -> Call:
        if threads not in requests:
            config = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",
            }
            requests[threads] = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
        request = requests[threads]
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
        return request.infer

    return prepare
