"""What an ONNX export takes: on disk, in memory at its peak, and to load, in a process of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = Path(__file__).parent / "programs" / "onnx_peak.py"


@dataclass(frozen=True)
class Footprint:
    """peak_bytes: of the process that loads it and answers once, Python and onnxruntime included."""

    file_bytes: int
    peak_bytes: int
    load_s: float


def footprint(folder: Path, tokens: int, threads: int) -> Footprint:
    command = [sys.executable, str(_PROGRAM), str(folder), str(tokens), str(threads)]
    peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = sum(file.stat().st_size for file in folder.glob("*.onnx*"))
    return Footprint(size, peak["bytes"], peak["load"])
