"""Runs an untrusted Python program on one input, in a process that can do nothing but compute.

Guaranteed for every program:

- It reads its input, computes and prints. It cannot start a process, send a signal, open a socket, write, create or
  delete a file, or raise its limits: the kernel refuses these calls (seccomp, `jail/seccomp.py`). It may start threads.
- CPU time, memory, output, open files and threads are bounded, and it is killed after a wall-clock time. It dies with
  its parent and leaves nothing behind.
- On a kernel with Landlock (Linux 5.13 or newer, unless it is switched off; `jail/landlock.py`) it can read only the
  Python installation and the system's libraries: no data sets, and no memory or environment of other processes.
  Without Landlock it can read everything that its user can.
- It gets none of the parent's environment and memory; the expected output stays with the parent.

Not guaranteed: it shares the kernel and may exploit its bugs, and it can measure time.
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
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lit_rlvr.types import ExecutionFailed

JAIL = str(Path(__file__).parent / "jail")
SANDBOX_MACHINES = ("x86_64", "aarch64")
OUTPUT_BYTES = 16 << 20
"""Size limits of output and of standard error."""
MAX_THREADS = 128
WALL_FACTOR = 10
"""Wall-clock seconds allowed per CPU second: for programs that sleep and overloaded machines."""
TICK_SECONDS = 0.05
"""Seconds between two checks of the number of threads."""
MESSAGE_BYTES = 2000
PACKAGES = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
READABLE = sorted({
    *PACKAGES, sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null",
    "/dev/urandom",
})  # fmt: skip


class ProgramLimits(NamedTuple):
    """Limits on one run of a program: whole seconds of CPU time, and MiB of address space."""

    cpu_seconds: int
    memory_mb: int


def is_supported() -> bool:
    """Return whether this machine supports the sandbox."""
    return sys.platform == "linux" and platform.machine() in SANDBOX_MACHINES


def run(program: str, text: str, limits: ProgramLimits, function: str = "") -> str:
    """Run a program and return what it prints.

    Args:
        program: the source code.
        text: standard input; with a `function`, that function's arguments, one line of JSON each.
        limits: limits on the program's CPU time and address space.
        function: call this function of the program, or the method of this name of its class `Solution`, and return
            the value as JSON; "" = run the program as a script.

    Raises:
        ExecutionFailed: there is no output to judge.
        RuntimeError: it could not be confined, so it was not run.
    """
    request = json.dumps(
        {
            "program": program,
            "function": function,
            "output_bytes": OUTPUT_BYTES,
            "packages": PACKAGES,
            "readable": READABLE,
            **limits._asdict(),
        }
    ).encode()
    with (
        _memory(text.encode()) as stdin,
        _memory() as stdout,
        _memory() as stderr,
        _memory(request) as channel,
    ):
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
        if os.fstat(channel.fileno()).st_size == len(request):
            raise RuntimeError(f"the sandbox did not start: {trouble or message or process.returncode}")
        if trouble:
            raise ExecutionFailed("timeout", trouble)
        if OUTPUT_BYTES in (os.fstat(file.fileno()).st_size for file in (stdout, stderr)):
            raise ExecutionFailed("timeout", f"more than {OUTPUT_BYTES >> 20} MiB of output")
        _check_end(process.returncode, message)
        stdout.seek(0)
        return stdout.read().decode(errors="replace")


def _memory(content: bytes = b"") -> BinaryIO:
    """Open an in-memory file, positioned at its beginning."""
    file = open(os.memfd_create("sandbox"), "w+b", buffering=0)  # noqa: SIM115 (closed by `run`)
    file.write(content)
    file.seek(0)
    return file


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process, then kill it; return the limit that it hit, or ""."""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TICK_SECONDS)
                return ""
            if os.stat(f"/proc/{process.pid}/task").st_nlink - 2 > MAX_THREADS:
                return f"more than {MAX_THREADS} threads"
        return f"out of wall-clock time ({seconds:g} s)"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_line(stderr: BinaryIO) -> str:
    """Return the end of what was written to standard error: an exception's type and message."""
    size = os.fstat(stderr.fileno()).st_size
    lines = os.pread(stderr.fileno(), MESSAGE_BYTES, max(0, size - MESSAGE_BYTES)).decode(errors="replace").split("\n")
    for line in reversed(lines):
        if line.strip():
            return line.strip()
    return ""


def _check_end(code: int, message: str) -> None:
    """Check that a process exited normally; `code` is its exit code, negative: the signal.

    Raises:
        ExecutionFailed: it did not.
    """
    if code == -signal.SIGXCPU:
        raise ExecutionFailed("timeout", "out of CPU time")
    if code in (-signal.SIGKILL, errno.ENOMEM):
        raise ExecutionFailed("timeout", "out of memory" if code > 0 else "killed, out of CPU time or memory")
    if code < 0:
        raise ExecutionFailed("ok", f"crashed by {signal.Signals(-code).name}")
    if code > 0:
        raise ExecutionFailed("ok", message or f"ended with code {code}")
