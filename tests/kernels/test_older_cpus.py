"""The library loads and multiplies on CPUs that lack what this one has, as qemu imitates them.

What a compiler puts into a library to run when it is loaded runs before anyone asks what the CPU can do.
"""

import os
import subprocess
import sys

import pytest

from slimdeploy.kernels.library import library_file

pytestmark = [pytest.mark.cross, pytest.mark.skipif(library_file() is None, reason="the kernels were not built")]

PROGRAM = """
import numpy as np
from slimdeploy.kernels.library import Linear, instruction_sets
from slimdeploy.packed import Encoding, pack

print(next(found.name for found in instruction_sets() if found.supported))
for encoding in (Encoding("bf16"), Encoding("int8", 128), Encoding("int4", 32)):
    ones = Linear(pack(np.eye(8, 70, dtype=np.float32), encoding, "unstructured"))(np.ones((1, 70), np.float32))
    np.testing.assert_allclose(ones, 1, rtol=0.01)
"""


@pytest.mark.parametrize(("cpu", "used"), [("Nehalem", "portable"), ("Haswell", "avx2")])
def test_an_older_cpu_runs_what_it_has(cpu: str, used: str) -> None:
    command = ["qemu-x86_64-static", "-cpu", cpu, sys.executable, "-c", PROGRAM]
    # numpy's own library is told what the CPU is: on some hosts it takes qemu's for a later one.
    environment = os.environ | {"OPENBLAS_CORETYPE": cpu}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [used]
