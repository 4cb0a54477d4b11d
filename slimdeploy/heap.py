"""Freed memory that the C library keeps for itself."""

import ctypes
import sys


def give_back_freed() -> None:
    """Hand what is free between allocations back to the system, where the C library is glibc; elsewhere do nothing.

    glibc takes tensors of up to 32 MB from one heap, of which it gives back nothing but the end. Block after block of
    weights and activations leaves holes in it, and the process grows although no tensor stays.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
