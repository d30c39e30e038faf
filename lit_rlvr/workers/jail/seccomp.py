"""Restricts the system calls of a program with a seccomp filter, which can never be removed."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
KILL = 0x80000000
ERROR = 0x00050000
ALLOW = 0x7FFF0000
LOAD = 0x20
RETURN = 0x06
IF_EQUAL = 0x15
IF_ANY_BIT = 0x45
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16
"""Offsets at which the filter finds a call's number, the architecture, and six arguments of 8 bytes."""

CLONE_THREAD = 0x10000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FCNTL = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; F_SETOWN would send signals to others."""
IOCTL = (0x5401, 0x5413, 0x5450, 0x5451)
"""TCGETS and TIOCGWINSZ (is it a terminal), FIONCLEX, FIOCLEX."""

Code = list[tuple[int, int, int, int]]
"""Instructions: (operation, how many to skip if true, if false, constant)."""

ALLOWED_CALLS: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (0xC000003E, {
        "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8,
        "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
        "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "readv": 19, "writev": 20, "access": 21, "select": 23,
        "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39,
        "clone": 56, "exit": 60, "uname": 63, "fcntl": 72, "getcwd": 79, "readlink": 89, "gettimeofday": 96,
        "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107,
        "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186, "futex": 202, "sched_getaffinity": 204,
        "getdents64": 217, "restart_syscall": 219, "fadvise64": 221, "clock_gettime": 228, "clock_getres": 229,
        "clock_nanosleep": 230, "exit_group": 231, "openat": 257, "newfstatat": 262, "readlinkat": 267,
        "faccessat": 269, "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "dup3": 292, "prlimit64": 302,
        "getcpu": 309, "getrandom": 318, "membarrier": 324, "statx": 332, "rseq": 334, "clone3": 435,
        "faccessat2": 439,
    }),
    "aarch64": (0xC00000B7, {
        "getcwd": 17, "dup": 23, "dup3": 24, "fcntl": 25, "ioctl": 29, "faccessat": 48, "openat": 56, "close": 57,
        "getdents64": 61, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67,
        "pselect6": 72, "ppoll": 73, "readlinkat": 78, "newfstatat": 79, "fstat": 80, "exit": 93, "exit_group": 94,
        "futex": 98, "set_robust_list": 99, "nanosleep": 101, "clock_gettime": 113, "clock_getres": 114,
        "clock_nanosleep": 115, "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128,
        "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "times": 153,
        "uname": 160, "getrlimit": 163, "getrusage": 165, "getcpu": 168, "gettimeofday": 169, "getpid": 172,
        "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179,
        "brk": 214, "munmap": 215, "mremap": 216, "clone": 220, "mmap": 222, "fadvise64": 223, "mprotect": 226,
        "madvise": 233, "prlimit64": 261, "getrandom": 278, "membarrier": 283, "statx": 291, "rseq": 293,
        "clone3": 435, "faccessat2": 439,
    }),
}  # fmt: skip
"""Machine -> its number, and the numbers of the allowed calls, some depending on their arguments (`RULES`)."""


def filter_syscalls() -> None:
    """From now on, let this process and its threads only read, compute and sleep.

    Everything else fails with EPERM: starting processes, signals, sockets, opening files for writing, changing files or
    limits. The caller must have set PR_SET_NO_NEW_PRIVS.

    Raises:
        OSError: the kernel refuses the filter.
        KeyError: the system calls of this machine are not known.
    """
    code = program(*ALLOWED_CALLS[platform.machine()])
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in code))
    header = struct.pack("HL", len(code), ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def program(machine: int, calls: dict[str, int]) -> Code:
    """Return the filter: a call with another architecture's numbers kills the process, an unlisted call fails."""
    code = [(LOAD, 0, 0, MACHINE), (IF_EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    for name, number in calls.items():
        verdict = RULES.get(name, [(RETURN, 0, 0, ALLOW)])
        code += [(IF_EQUAL, 0, len(verdict), number), *verdict]
    return [*code, (RETURN, 0, 0, ERROR | errno.EPERM)]


def _low_half(argument: int) -> tuple[int, int, int, int]:
    return LOAD, 0, 0, ARGUMENTS + 8 * argument


def _without(argument: int, bits: int) -> Code:
    """Allow the call if its argument has none of the bits."""
    return [_low_half(argument), (IF_ANY_BIT, 0, 1, bits), (RETURN, 0, 0, ERROR | errno.EPERM), (RETURN, 0, 0, ALLOW)]


def _one_of(argument: int, values: Iterable[int]) -> Code:
    """Allow the call if its argument is one of the values."""
    allowed: Code = []
    for value in values:
        allowed.extend(((IF_EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)))
    return [_low_half(argument), *allowed, (RETURN, 0, 0, ERROR | errno.EPERM)]


RULES: dict[str, Code] = {
    "open": _without(1, WRITING),
    "openat": _without(2, WRITING),
    "clone": [
        _low_half(0),
        (IF_ANY_BIT, 1, 0, CLONE_THREAD),
        (RETURN, 0, 0, ERROR | errno.EPERM),
        (RETURN, 0, 0, ALLOW),
    ],
    "clone3": [(RETURN, 0, 0, ERROR | errno.ENOSYS)],  # its flags cannot be seen; the C library falls back to clone
    "fcntl": _one_of(1, FCNTL),
    "ioctl": _one_of(1, IOCTL),
    "prlimit64": [  # allowed if its third argument, the new limit, is not an address
        _low_half(2),
        (IF_EQUAL, 0, 2, 0),
        (LOAD, 0, 0, ARGUMENTS + 8 * 2 + 4),
        (IF_EQUAL, 1, 0, 0),
        (RETURN, 0, 0, ERROR | errno.EPERM),
        (RETURN, 0, 0, ALLOW),
    ],
}
"""Call -> the checks on its arguments; all other listed calls are allowed unconditionally."""
