"""Keeps freed memory for reuse."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next tensors instead of returning them to the system.

    By default every large CPU tensor is mapped afresh, and zeroing its pages on first touch takes up to a third of a
    training step. With another C library this does nothing. torch should also use huge pages
    (`THP_MEM_ALLOC_ENABLE`, set in `lit_rlvr/__init__.py`), whose alignment keeps the heap from fragmenting.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 1 << 26)):
            libc.mallopt(option, value)
