"""What the C library does with freed memory."""

import ctypes
import sys

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's malloc.h."""
_OWN_PAGES_FROM = 4_000_000
"""Bytes. Where smaller tensors have pages of their own too, making those takes a quarter of the time of pruning."""


def give_back_when_freed() -> None:
    """From now on tensors go back to the system when they are freed, where the C library is glibc; elsewhere nothing.

    By itself glibc comes to take what has up to 32 MB from one heap, of which it gives back nothing but the end. Block
    after block of weights and activations leaves holes in it, and the process grows although no tensor stays.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        set_option(_MMAP_THRESHOLD, _OWN_PAGES_FROM)
