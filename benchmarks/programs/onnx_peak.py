"""Loads an ONNX export, encodes a picture, answers a prompt with one token, and prints what that took, as JSON.

python onnx_peak.py FOLDER TOKENS THREADS
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from peak_memory import peak_bytes

from slimdeploy.serve.engines.onnx_model import OnnxModel
from slimdeploy.serve.engines.onnx_sessions import Tokens

folder, tokens, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
start = time.perf_counter()
model = OnnxModel(folder, threads)
loaded = time.perf_counter() - start
size = json.loads((folder / "config.json").read_text())["vision_config"]["image_size"]
model.sessions.encode_picture({"pixel_values": np.zeros((1, 3, size, size), np.float32)})
embeddings = model.sessions.embed([0] * tokens)
model.sessions.decode(Tokens(embeddings, np.arange(tokens)[None]), model.sessions.new_cache(tokens))
sys.stdout.write(json.dumps({"load": loaded, "bytes": peak_bytes()}))
