"""Starts one agent, and kills everything that it started when it ends or when the run does.

Run as a file by `processes.py`: `python -IS launcher.py PARENT CPU_SECONDS MEMORY_MB COMMAND...`. It imports only what
starts fast.
"""

import ctypes
import os
import resource
import signal
import sys
import time
from contextlib import suppress

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NOT_STARTED = 127
"""The exit status if there is no such program."""


def main(parent: int, cpu_seconds: int, memory_mb: int, command: list[str]) -> int:
    """Run a command to its end; return its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(-signal.SIGTERM))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # processes that lose their parent become children of this one
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before
        return NOT_STARTED
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        start(cpu_seconds, memory_mb, command)
    try:
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == child:
                return os.waitstatus_to_exitcode(status)
    finally:
        kill_children(child)


def start(cpu_seconds: int, memory_mb: int, command: list[str]) -> None:
    """Become the command; `cpu_seconds` of 0 is no limit."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if cpu_seconds:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(NOT_STARTED)


def kill_children(child: int) -> None:
    """Kill the child and all processes that descend from it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    left = {child}
    while left:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = children()
        if left:
            time.sleep(0.001)


def children() -> set[int]:
    """Return the children of this process; none where the system does not list them."""
    with suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
        pids = set()
        for pid in file.read().split():
            pids.add(int(pid))
        return pids
    return set()


if __name__ == "__main__":
    status = main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    sys.stdout.flush()
    os._exit(status if status >= 0 else 128 - status)
