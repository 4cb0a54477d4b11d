"""The program that session_memory.py measures: python session_peak.py MODEL OPERATORS prints its peak memory in bytes.

It imports what a device imports, and no more.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

PEAK = "VmHWM"
"""In /proc/self/status. getrusage would tell the parent's peak where that was higher."""

model, operators = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.register_custom_ops_library(operators)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
inputs = session.get_inputs()[0]
session.run(None, {inputs.name: np.ones((1, inputs.shape[1]), np.float32)})
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
sys.stdout.write(f"{1024 * int(status[PEAK].split()[0])}\n")
