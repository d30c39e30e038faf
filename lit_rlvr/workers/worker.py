"""A worker process: runs functions on untrusted answers under limits that they cannot escape.

Started by `pool.py` as `python -m lit_rlvr.workers.worker FD PID`. Requests and replies travel over the socket FD, so
that a function's output cannot corrupt them; PID is the parent. Imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import _bootstrap, import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lit_rlvr.common.user_code import with_user_line
from lit_rlvr.errors import UserError

PR_SET_PDEATHSIG = 1
DETAIL_CHARACTERS = 500


def main(descriptor: int, parent: int) -> None:
    """Serve requests until the parent closes its end.

    A request is (number, "load", key, name, pickle), with name and pickle of a `Function`, or (number, "run", key,
    arguments, cpu_seconds, memory_mb). A reply is a pickled (number, value, status, detail), with status "refused" for
    a `UserError`. A child process that a function forks sends no reply, because the fork closes its connection.
    """
    _prepare(descriptor, parent)
    connection = Connection(descriptor)
    os.register_at_fork(after_in_child=connection.close)
    functions: dict[str, Callable[..., Any]] = {}
    imports = UnlimitedImports()
    loaded_mb = 0  # memory taken by imports of functions and arguments
    while True:
        before_mb = _address_space_mb()
        try:
            number, kind, key, *rest = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        os.ftruncate(2, 0)  # keep output of the current request only
        os.lseek(2, 0, os.SEEK_SET)
        if kind == "load":
            reply = _reply(number, _load, (*rest, key, functions))
            loaded_mb += _address_space_mb() - before_mb
        else:
            arguments, cpu_seconds, memory_mb = rest
            loaded_mb += _address_space_mb() - before_mb
            with limited(cpu_seconds, loaded_mb + imports.memory_mb + memory_mb):
                reply = _reply(number, functions[key], arguments)
        connection.send_bytes(reply)


def _prepare(descriptor: int, parent: int) -> None:
    """Tie this process to the parent's thread that started it, even during a call; `pool.py` keeps that thread."""
    os.set_inheritable(descriptor, False)
    if sys.platform == "linux":  # end-of-file would only be noticed between requests
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        sys.exit("orphaned")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # kills; an ignored or blocked signal is inherited
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})


def _load(name: str, pickled: bytes, key: str, functions: dict[str, Callable[..., Any]]) -> None:
    module, _, function = name.partition(":")
    if pickled:
        functions[key] = pickle.loads(pickled)
    else:
        functions[key] = getattr(import_module(module), function)


def _reply(number: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((number, function(*arguments), "ok", ""))
    except (MemoryError, RecursionError) as error:  # the answer's fault, like running out of time
        return pickle.dumps((number, None, "timeout", f"{type(error).__name__}: too much for the checker"))
    except UserError as error:
        return pickle.dumps((number, None, "refused", str(error)))
    except Exception as error:
        return pickle.dumps((number, None, "error", with_user_line(error)[:DETAIL_CHARACTERS]))


def _address_space_mb() -> int:
    """Return this process's share of RLIMIT_AS, in MiB; 0 if the system does not report it."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[0]) * resource.getpagesize() >> 20
    return 0


@contextmanager
def limited(cpu_seconds: float, memory_mb: int) -> Iterator[None]:
    """Limit the CPU time and the address space of this process.

    SIGPROF kills it after `cpu_seconds` of its CPU time, accurate to some ms, where RLIMIT_CPU only counts whole
    seconds. Allocations fail once the address space would exceed `memory_mb` MiB.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class UnlimitedImports:
    """An importer that keeps imports in the body of a call out of its CPU and memory limits.

    Only a worker's first call pays for them. An import that never ends is stopped by the wall clock. importlib calls
    `_find_and_load` for modules that are not imported yet, also from C.

    Attributes:
        memory_mb: address space that such imports have taken.
    """

    def __init__(self) -> None:
        self.memory_mb = 0
        self._find_and_load: Any = vars(_bootstrap)["_find_and_load"]
        vars(_bootstrap)["_find_and_load"] = self._load

    def _load(self, name: str, import_: Any) -> Any:
        left, _ = signal.getitimer(signal.ITIMER_PROF)
        if name in sys.modules or not left:  # not left: outside of calls, inside of another import, and in a fork
            return self._find_and_load(name, import_)
        (soft, hard), before_mb = resource.getrlimit(resource.RLIMIT_AS), _address_space_mb()
        left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        try:
            return self._find_and_load(name, import_)
        finally:
            grown_mb = max(0, _address_space_mb() - before_mb)
            self.memory_mb += grown_mb
            size = soft + grown_mb * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
            signal.setitimer(signal.ITIMER_PROF, left)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
