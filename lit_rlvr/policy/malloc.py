"""Memory that is freed is used again."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next tensors instead of giving them back to the system.

    By default every large tensor on a CPU is mapped anew, and zeroing its pages at first touch takes up to a third of
    a training step's time. With another C library this does nothing. Together with it torch is to use huge pages
    (`THP_MEM_ALLOC_ENABLE`, set in `lit_rlvr/__init__.py`): their alignment also keeps the heap from fragmenting.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 1 << 26)):
            libc.mallopt(option, value)
