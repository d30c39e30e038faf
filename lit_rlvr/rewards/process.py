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
from multiprocessing.connection import Pipe
from typing import Any, Literal, NamedTuple

LOADING = -1
LOG_BYTES = 1000


class Outcome(NamedTuple):
    """What became of one check.

    value: what the function returned; None unless the status is "ok".
    status: "timeout" = the answer ran into a limit (time, memory, recursion); "error" = the function
        raised, or its worker died twice.
    detail: why, when not "ok".
    """

    value: Any
    status: Literal["ok", "timeout", "error"]
    detail: str = ""


class WorkerProcess:
    """One worker process and what it is doing.

    task: the number of the check it works on, LOADING, or None. It is set before the request is sent
        and cleared after the whole answer is read, so whatever interrupts us in between leaves the
        worker marked as busy.
    deadline: when to stop waiting for it, in seconds of `time.monotonic`.
    function: the last one it was asked for, as "module:name".
    loaded: the functions it has imported.
    checks: how many it has answered.
    """

    def __init__(self) -> None:
        self.task: int | None = None
        self.deadline = 0.0
        self.function = ""
        self.loaded: set[str] = set()
        self.checks = 0
        self.tail = b""
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `kill`)
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-m", "lit_rlvr.rewards.worker", str(theirs.fileno())],
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

    def load(self, function: str, seconds: float) -> None:
        """Ask it to import a function within `seconds`."""
        self._ask(LOADING, function, seconds, ("load", function))

    def check(self, task: int, function: str, seconds: float, *request: Any) -> None:
        """Ask it for check number `task` within `seconds`; `request` is (arguments, CPU s, MiB)."""
        self._ask(task, function, seconds, ("run", function, *request))

    def _ask(self, task: int, function: str, seconds: float, request: tuple[Any, ...]) -> None:
        self.task = task
        self.function = function
        self.deadline = time.monotonic() + seconds
        with suppress(BrokenPipeError, ConnectionResetError):  # it died; `answer` will say so
            self.connection.send(request)

    def answer(self) -> Outcome | None:
        """Its reply, or None when it died for no reason of ours."""
        try:
            reply = self.connection.recv_bytes()
        except (EOFError, OSError):
            self.process.wait()
            return Outcome(None, "timeout", "out of CPU time") if self.process.returncode == -signal.SIGPROF else None
        outcome = Outcome(*pickle.loads(reply))
        if self.task != LOADING:
            self.checks += 1
        elif outcome.status == "ok":
            self.loaded.add(self.function)
        self.task = None
        return outcome

    def may_have_leaked(self, outcome: Outcome) -> bool:
        """Whether it ran out of memory of which earlier checks may have kept some."""
        return self.checks > 1 and outcome.detail.startswith("MemoryError")

    def obituary(self) -> str:
        """How a killed worker ended (negative: the signal) and the last it printed."""
        return f"exit code {self.process.returncode}; {self.tail.decode(errors='replace').strip()}"

    def kill(self) -> None:
        """End it and release its descriptors; harmless when done before."""
        if self.log.closed:
            return
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.tail = os.pread(self.log.fileno(), LOG_BYTES, max(0, os.fstat(self.log.fileno()).st_size - LOG_BYTES))
        self.log.close()
