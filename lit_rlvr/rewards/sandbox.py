"""Runs an untrusted Python program on one input, in a process that can do nothing but compute.

What holds for it, whatever the program does:

- It reads its input, computes and prints. It cannot start a process, send a signal, open a socket, write, create or
  delete a file, or raise its limits: the kernel refuses these calls (seccomp, `jail/seccomp.py`). Threads it may start.
- CPU time, memory, output, open files and threads are bounded, and it is killed after a wall-clock time. It dies with
  its parent. It leaves nothing behind.
- It reads files of the Python installation and of the system's libraries alone, so neither data sets nor the memory and
  environment of other processes, on a kernel with Landlock (Linux 5.13 or newer, unless it is switched off;
  `jail/landlock.py`). On one without it can read whatever its user can.
- It gets nothing of the parent's environment and memory; the expected output stays with the parent.

What does not hold: it shares the kernel, whose bugs it may find, and it can measure time.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:  # it imports torch, which no worker should pay for
    from lit_rlvr.types import Status

JAIL = str(Path(__file__).parent / "jail")
MACHINES = ("x86_64", "aarch64")
OUTPUT_BYTES = 16 << 20
"""The longest output, and the longest standard error."""
MAX_THREADS = 128
WALL_FACTOR = 10
"""Wall-clock seconds for each of CPU time: for a program that sleeps, and a machine that is too busy."""
TICK = 0.05
"""Seconds between two looks at the number of threads."""
MESSAGE_BYTES = 2000
PACKAGES = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
READABLE = sorted({
    *PACKAGES, sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null",
    "/dev/urandom",
})  # fmt: skip


class Limits(NamedTuple):
    """What one run of a program may use: whole seconds of CPU time, and MiB of address space."""

    cpu_seconds: int
    memory_mb: int


class ProgramFailed(Exception):
    """A program that did not come to its end.

    Args:
        status: "timeout" = it ran into a limit; "ok" = it raised an exception or crashed.
        reason: which limit, or the last line it wrote to standard error.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def is_supported() -> bool:
    """Whether this machine can hold a program."""
    return sys.platform == "linux" and platform.machine() in MACHINES


def run(program: str, text: str, limits: Limits, function: str = "") -> str:
    """What a program prints.

    Args:
        program: its source.
        text: its standard input; with a `function` that function's arguments, a line of JSON each.
        function: call this function of the program, or the method of this name of its class `Solution`, and return
            the value as JSON; "" = run the program as a script.

    Raises:
        ProgramFailed: it has no output to judge.
        RuntimeError: it could not be confined, so it was not run.
    """
    request = {
        "program": program, "function": function, "output_bytes": OUTPUT_BYTES, "packages": PACKAGES,
        "readable": READABLE, **limits._asdict(),
    }  # fmt: skip
    with (
        _memory(text.encode()) as stdin,
        _memory() as stdout,
        _memory() as stderr,
        _memory(json.dumps(request).encode()) as channel,
    ):
        size = channel.seek(0, os.SEEK_END)
        channel.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-sS", "-X", "utf8", JAIL, str(channel.fileno()), str(os.getpid())],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=[channel.fileno()],
            start_new_session=True,
            cwd="/",  # it can write nowhere
            env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},
        )
        trouble = _wait(process, WALL_FACTOR * limits.cpu_seconds)
        message = _last_line(stderr)
        if os.fstat(channel.fileno()).st_size == size:
            raise RuntimeError(f"the sandbox did not start: {trouble or message or process.returncode}")
        if trouble:
            raise ProgramFailed("timeout", trouble)
        if OUTPUT_BYTES in (os.fstat(file.fileno()).st_size for file in (stdout, stderr)):
            raise ProgramFailed("timeout", f"more than {OUTPUT_BYTES >> 20} MiB of output")
        _check_end(process.returncode, message)
        stdout.seek(0)
        return stdout.read().decode(errors="replace")


@contextmanager
def _memory(content: bytes = b"") -> Iterator[BinaryIO]:
    """A file that is on no disk, read from its beginning."""
    with open(os.memfd_create("sandbox"), "w+b", buffering=0) as file:
        file.write(content)
        file.seek(0)
        yield file


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process, and kill it in the end; "", or which limit it ran into."""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TICK)
                return ""
            if os.stat(f"/proc/{process.pid}/task").st_nlink - 2 > MAX_THREADS:
                return f"more than {MAX_THREADS} threads"
        return f"out of wall-clock time ({seconds:g} s)"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_line(stderr: BinaryIO) -> str:
    """The end of what was written to standard error: an exception's type and message."""
    size = os.fstat(stderr.fileno()).st_size
    lines = os.pread(stderr.fileno(), MESSAGE_BYTES, max(0, size - MESSAGE_BYTES)).decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _check_end(code: int, message: str) -> None:
    """Whether a process came to its end by itself; `code` is its exit code, negative: the signal.

    Raises:
        ProgramFailed: it did not.
    """
    if code == -signal.SIGXCPU:
        raise ProgramFailed("timeout", "out of CPU time")
    if code in (-signal.SIGKILL, errno.ENOMEM):
        raise ProgramFailed("timeout", "out of memory" if code > 0 else "killed, out of CPU time or memory")
    if code < 0:
        raise ProgramFailed("ok", f"crashed by {signal.Signals(-code).name}")
    if code > 0:
        raise ProgramFailed("ok", message or f"ended with code {code}")
