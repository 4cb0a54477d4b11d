"""The program that session_memory.py measures: python session_peak.py MODEL OPERATORS prints its peak memory in bytes.

It imports what a device imports, and no more.
"""

import sys

import numpy as np
import onnxruntime
from peak_memory import peak_bytes

model, operators = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.register_custom_ops_library(operators)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
inputs = session.get_inputs()[0]
session.run(None, {inputs.name: np.ones((1, inputs.shape[1]), np.float32)})
sys.stdout.write(f"{peak_bytes()}\n")
