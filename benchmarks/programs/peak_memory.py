"""The peak memory of this process. Imports nothing that takes any."""

from pathlib import Path

_PEAK = "VmHWM"
"""In /proc/self/status. getrusage would tell the parent's peak where that was higher."""


def peak_bytes() -> int:
    """Of everything resident since the process began, pages of mapped files among it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[_PEAK].split()[0])
