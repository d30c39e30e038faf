"""Restricts which folders a program may read, with Landlock (Linux 5.13 or newer)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System call numbers, the same on every architecture."""
READ_FILE = 1 << 2
READ_DIR = 1 << 3
PATH_BENEATH = 1
UNAVAILABLE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""Errors if Landlock is not built in, is switched off, or is blocked by a container."""


def read_only_beneath(paths: Iterable[str]) -> bool:
    """From now on, let this process read files and list folders only beneath `paths`.

    The caller must have set PR_SET_NO_NEW_PRIVS.

    Args:
        paths: folders and files; missing ones are skipped.

    Returns:
        False: Landlock is not available; nothing was restricted.

    Raises:
        OSError: the kernel refuses it for another reason.
    """
    try:
        rules = _call(CREATE_RULESET, struct.pack("Q", READ_FILE | READ_DIR), 8, 0)
    except OSError as error:
        if error.errno in UNAVAILABLE:
            return False
        raise
    for path in filter(os.path.exists, paths):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        access = READ_FILE | (READ_DIR if os.path.isdir(path) else 0)
        _call(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", access, folder), 0)
        os.close(folder)
    _call(RESTRICT_SELF, rules, 0)
    os.close(rules)
    return True


def _call(number: int, *arguments: int | bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    values = []
    for value in arguments:
        values.append(ctypes.c_long(value) if isinstance(value, int) else value)
    result: int = libc.syscall(ctypes.c_long(number), *values)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
