"""The parent's side of one worker process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from hashlib import sha256
from multiprocessing.connection import Pipe
from typing import Any, Literal, NamedTuple

LOADING = -1
LOG_BYTES = 1000


class Outcome(NamedTuple):
    """The outcome of one check.

    value: the function's return value; None unless the status is "ok".
    status: "timeout" = the answer hit a limit (time, memory, recursion); "error" = the function raised, or its worker
        died twice.
    detail: why, when not "ok".
    """

    value: Any
    status: Literal["ok", "timeout", "error"]
    detail: str = ""


class Function(NamedTuple):
    """A function that workers call.

    name: where to import it from, "module:name"; with a `pickle`, only its name in messages.
    pickle: the callable itself; b"" = import it.
    """

    name: str
    pickle: bytes = b""

    @property
    def key(self) -> str:
        """A unique key."""
        return f"{self.name} {sha256(self.pickle).hexdigest()}"


class WorkerProcess:
    """One worker process and its state. It dies with the thread that starts it.

    request: the number of the last request, which its answer repeats.
    task: the number of its current check, LOADING, or None. It is set before the request is sent and cleared after the
        whole answer is read, so that an interruption in between leaves the worker marked as busy.
    deadline: when to stop waiting for it, in seconds of `time.monotonic`.
    function: the last function requested.
    loaded: the keys of the functions it has loaded.
    checks: the number of checks it has answered.
    """

    def __init__(self) -> None:
        self.request = 0
        self.task: int | None = None
        self.deadline = 0.0
        self.function = Function("")
        self.loaded: set[str] = set()
        self.checks = 0
        self.tail = b""
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `kill`)
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-m", "lit_rlvr.workers.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is ours to handle
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                    "PYTHONHASHSEED": "0",  # the order of sets must not differ between workers
                    "OMP_NUM_THREADS": "1",
                },
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def load(self, function: Function, seconds: float) -> None:
        """Ask it to import or unpickle a function within `seconds`."""
        self._ask(LOADING, function, seconds, ("load", function.key, *function))

    def check(self, task: int, function: Function, seconds: float, *request: Any) -> None:
        """Ask it for check number `task` within `seconds`; `request` is (arguments, CPU s, MiB)."""
        self._ask(task, function, seconds, ("run", function.key, *request))

    def _ask(self, task: int, function: Function, seconds: float, request: tuple[Any, ...]) -> None:
        self.request += 1
        self.task = task
        self.function = function
        self.deadline = time.monotonic() + seconds
        with suppress(BrokenPipeError, ConnectionResetError):  # it died; `answer` will say so
            self.connection.send((self.request, *request))

    def answer(self) -> Outcome | None:
        """Its reply to the last request, or None if it died for a reason other than a limit."""
        try:
            number, *reply = pickle.loads(self.connection.recv_bytes())
            while number != self.request:  # an answer to something else
                if not self.connection.poll(max(0.0, self.deadline - time.monotonic())):
                    return Outcome(None, "timeout", "out of wall-clock time")
                number, *reply = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            self._end()
            return Outcome(None, "timeout", "out of CPU time") if self.process.returncode == -signal.SIGPROF else None
        outcome = Outcome(*reply)
        if self.task != LOADING:
            self.checks += 1
        elif outcome.status == "ok":
            self.loaded.add(self.function.key)
        self.task = None
        return outcome

    def may_have_leaked(self, outcome: Outcome) -> bool:
        """Whether it ran out of memory that earlier checks may partly hold."""
        return self.checks > 1 and outcome.detail.startswith("MemoryError")

    def obituary(self) -> str:
        """The exit code of a killed worker (negative: the signal) and its last output."""
        last = self.tail.decode(errors="replace").strip()
        return f"exit code {self.process.returncode}" + (f"; {last}" if last else "")

    def kill(self) -> None:
        """Kill it and release its descriptors; safe to call again."""
        if self.log.closed:
            return
        self._end()
        self.connection.close()
        self.tail = os.pread(self.log.fileno(), LOG_BYTES, max(0, os.fstat(self.log.fileno()).st_size - LOG_BYTES))
        self.log.close()

    def _end(self) -> None:
        """Kill it and the processes that its checks started; a worker that has already exited keeps its exit code."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
