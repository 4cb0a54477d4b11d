"""What takes long to make and is only read afterwards: the first of pytest-xdist's workers that needs it makes it."""

import fcntl
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MakeOnce = Callable[[str, Callable[[Path], Any]], Any]
"""What the function returns for a folder of that name: its own result, or a copy of what it returned elsewhere."""


def made_once(base: Path, name: str, make: Callable[[Path], Any]) -> Any:
    """base: a folder that the workers share. The others wait; where it cannot be made, each of them tries."""
    folder, result = base / name, base / f"{name}.pickle"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            result.write_bytes(pickle.dumps(make(folder)))
    return pickle.loads(result.read_bytes())
