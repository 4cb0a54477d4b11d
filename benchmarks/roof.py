"""The memory roof: how fast this machine reads a buffer far larger than its caches, from huge pages.

It is a contender like the others, so that it is measured in the same rounds.
"""

import ctypes
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

from rounds import Call, Contender, Floats

SOURCE = Path(__file__).with_name("read_bandwidth.c")
PREFETCH_AHEAD = (0, 2048, 4096)
"""In bytes; which is fastest differs between CPUs, and the roof is the fastest."""


def readers(buffer_bytes: int, folder: Path) -> list[Contender]:
    """One for each way of reading; none without a C compiler. folder: where the compiled reader may lie."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return []
    file = folder / "read_bandwidth.so"
    subprocess.run(
        [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-pthread", "-o", str(file), str(SOURCE)], check=True
    )
    library = ctypes.CDLL(str(file))
    library.buffer_create.restype = ctypes.c_void_p
    library.buffer_read.restype = ctypes.c_uint64
    buffer = ctypes.c_void_p(library.buffer_create(ctypes.c_size_t(buffer_bytes)))
    if not buffer:
        raise MemoryError(f"no {buffer_bytes} bytes of memory for the buffer that is read")

    def prepare(ahead: int, _x: Floats, threads: int) -> Call:
        arguments = buffer, ctypes.c_size_t(buffer_bytes), ctypes.c_size_t(ahead), threads
        return lambda: library.buffer_read(*arguments)

    return [
        Contender(f"reading, prefetch {ahead}", buffer_bytes, 1, [partial(prepare, ahead)]) for ahead in PREFETCH_AHEAD
    ]
