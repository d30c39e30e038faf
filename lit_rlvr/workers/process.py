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
from dataclasses import asdict, dataclass
from hashlib import sha256
from multiprocessing.connection import Pipe
from typing import Any, Literal, NamedTuple

from lit_rlvr.common.arguments import check_within
from lit_rlvr.errors import UserError, first_line

LOG_BYTES = 1000


@dataclass(frozen=True)
class Isolation:
    """Limits on one call in a worker process.

    Args:
        cpu_seconds: CPU time, not counting imports.
        wall_seconds: wall-clock time, for a function that sleeps or waits.
        memory_mb: address space in MiB, not counting imports.

    Raises:
        UserError: a limit is not positive.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 20.0
    memory_mb: int = 2048

    def __post_init__(self) -> None:
        check_within("(0, inf)", "limits of a worker process", **asdict(self))


class Outcome(NamedTuple):
    """The outcome of one job.

    value: the function's return value; None unless the status is "ok".
    status: "timeout" = the call hit a limit (time, memory, recursion); "error" = the function raised, or its worker
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
        """The key under which workers keep the function."""
        return f"{self.name} {sha256(self.pickle).hexdigest()}"


def pickle_for_worker(value: object, what: str, remedy: str) -> bytes:
    """Pickle something for a worker process.

    Raises:
        UserError: it cannot be pickled; the message says `what` it is, why, and the remedy.
    """
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UserError(f"{what} cannot be sent to a worker process ({first_line(error)}): {remedy}") from error


class WorkerProcess:
    """One worker process and its state. It dies with the thread that starts it.

    request: the number of the last request, which its answer repeats.
    asked: the kind of the request under way. It is set before the request is sent and cleared after the whole answer is
        read, so that an interruption in between leaves the worker marked as busy.
    deadline: when to stop waiting for it, in seconds of `time.monotonic`.
    function: the last function requested.
    loaded: the keys of the functions it has loaded.
    jobs: the number of jobs it has begun.
    """

    def __init__(self) -> None:
        self.request = 0
        self.asked: Literal["load", "run"] | None = None
        self.deadline = 0.0
        self.function = Function("")
        self.loaded: set[str] = set()
        self.jobs = 0
        self.tail = b""
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `kill`)
        self.connection, child = Pipe()
        with child:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-m", "lit_rlvr.workers.worker", str(child.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                pass_fds=[child.fileno()],
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
        """True while the process runs."""
        return self.process.poll() is None

    def load(self, function: Function, seconds: float) -> None:
        """Ask the worker to import or unpickle a function within `seconds`."""
        self._ask("load", function, seconds, *function)

    def call(self, function: Function, limits: Isolation, arguments: tuple[Any, ...]) -> None:
        """Ask the worker to call a function that it has loaded."""
        self._ask("run", function, limits.wall_seconds, arguments, limits.cpu_seconds, limits.memory_mb)

    def _ask(self, kind: Literal["load", "run"], function: Function, seconds: float, *request: Any) -> None:
        self.request += 1
        self.asked = kind
        self.function = function
        self.deadline = time.monotonic() + seconds
        with suppress(BrokenPipeError, ConnectionResetError):  # it died; `answer` will say so
            self.connection.send((self.request, kind, function.key, *request))

    def answer(self) -> Outcome | None:
        """Wait for the answer to the last request; return None if the worker died for a reason other than a limit.

        Raises:
            UserError: the function raised it.
        """
        number = None
        try:
            while number != self.request:  # else an answer to something else
                if not self.connection.poll(max(0.0, self.deadline - time.monotonic())):
                    return Outcome(None, "timeout", "out of wall-clock time")
                number, value, status, detail = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            self._end()
            if self.process.returncode == -signal.SIGPROF:
                return Outcome(None, "timeout", "out of CPU time")
            return None
        if self.asked == "load" and status == "ok":
            self.loaded.add(self.function.key)
        self.asked = None
        if status == "refused":
            raise UserError(detail)
        return Outcome(value, status, detail)

    def obituary(self) -> str:
        """Return the exit code of a killed worker (negative: the signal) and its last output."""
        last = self.tail.decode(errors="replace").strip()
        return f"exit code {self.process.returncode}" + (f"; {last}" if last else "")

    def kill(self) -> None:
        """Kill the worker and release its descriptors; safe to call again."""
        if self.log.closed:
            return
        self._end()
        self.connection.close()
        self.tail = os.pread(self.log.fileno(), LOG_BYTES, max(0, os.fstat(self.log.fileno()).st_size - LOG_BYTES))
        self.log.close()

    def _end(self) -> None:
        """Kill the worker and the processes that its calls started; one that has already exited keeps its exit code."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
