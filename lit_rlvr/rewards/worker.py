"""A reward worker: runs functions on untrusted answers under limits that it cannot escape.

Started by `pool.py` as `python -m lit_rlvr.rewards.worker FD`; requests and replies travel over the
socket FD, so that whatever a function prints cannot corrupt them. Imports nothing heavy.
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
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG = 1
DETAIL_CHARACTERS = 500


def main(descriptor: int) -> None:
    """Serve requests until the parent closes its end.

    A request is ("load", "module:name") or ("run", "module:name", arguments, cpu_seconds, memory_mb);
    a reply is a pickled (value, status, detail).
    """
    _prepare(descriptor)
    connection = Connection(descriptor)
    functions: dict[str, Callable[..., Any]] = {}
    while True:
        try:
            kind, name, *rest = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        os.ftruncate(2, 0)  # what was printed is kept for the current request only
        os.lseek(2, 0, os.SEEK_SET)
        if kind == "load":
            reply = _reply(_load, (name, functions))
        else:
            arguments, cpu_seconds, memory_mb = rest
            with limited(cpu_seconds, memory_mb):
                reply = _reply(functions[name], arguments)
        connection.send_bytes(reply)


def _prepare(descriptor: int) -> None:
    os.set_inheritable(descriptor, False)
    if sys.platform == "linux":  # end-of-file would only be noticed between requests
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # kills; an ignored or blocked signal is inherited
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})


def _load(name: str, functions: dict[str, Callable[..., Any]]) -> None:
    module, _, function = name.partition(":")
    functions[name] = getattr(import_module(module), function)


def _reply(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((function(*arguments), "ok", ""))
    except (MemoryError, RecursionError) as error:  # the answer's fault, as running out of time is
        return pickle.dumps((None, "timeout", f"{type(error).__name__}: too much for the checker"))
    except Exception as error:
        return pickle.dumps((None, "error", f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS]))


@contextmanager
def limited(cpu_seconds: float, memory_mb: int) -> Iterator[None]:
    """Kill this process after `cpu_seconds` of its own CPU time (SIGPROF, its default action, at a
    granularity of some ms; RLIMIT_CPU only counts whole seconds), and let allocations fail once the
    address space would exceed `memory_mb` MiB.
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


if __name__ == "__main__":
    main(int(sys.argv[1]))
