"""Killable worker processes for checks of untrusted answers.

Every check runs in a worker process (`worker.py`) under limits on CPU time, memory and, as
the last resort, wall-clock time. CPU time comes first because it does not depend on how busy the
machine is: the same answer gets the same status when a run is repeated or resumed.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from functools import lru_cache
from multiprocessing.connection import wait
from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.rewards.process import LOADING, Outcome, WorkerProcess


class WorkerPool:
    """Runs functions in worker processes, which start on first use and are replaced when they die.

    Args:
        workers: processes; results do not depend on it.
        cpu_seconds: CPU time of one check.
        wall_seconds: wall-clock time of one check, the last resort (a check that sleeps or waits).
        memory_mb: address space of a worker in MiB, its own ~200 included.
        start_seconds: wall-clock time to start a worker and import a function's module.

    Raises:
        UserError: a number is not positive.
    """

    def __init__(
        self,
        workers: int = 2,
        cpu_seconds: float = 2.0,
        wall_seconds: float = 20.0,
        memory_mb: int = 2048,
        start_seconds: float = 60.0,
    ) -> None:
        _require_positive(workers=workers, start_seconds=start_seconds)
        _require_positive(cpu_seconds=cpu_seconds, wall_seconds=wall_seconds, memory_mb=memory_mb)
        self.workers = workers
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = wall_seconds
        self.memory_mb = memory_mb
        self.start_seconds = start_seconds
        self._live: list[WorkerProcess] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _kill_all, self._live, self._owner)  # also at exit

    def run(
        self,
        function: str,
        arguments: list[tuple[Any, ...]],
        *,
        cpu_seconds: float | None = None,
        wall_seconds: float | None = None,
        memory_mb: int | None = None,
    ) -> list[Outcome]:
        """Call `function` ("module:name") once per tuple of arguments; outcomes in that order.

        Arguments and values must pickle. The limits default to the pool's. A worker that dies for
        another reason than its limits is replaced and the check repeated once; one that runs out of memory is
        replaced, and the check repeated until a worker without a past has spoken.

        Raises:
            UserError: a worker could not start or import the function.
        """
        cpu_seconds = self.cpu_seconds if cpu_seconds is None else cpu_seconds
        wall_seconds = self.wall_seconds if wall_seconds is None else wall_seconds
        memory_mb = self.memory_mb if memory_mb is None else memory_mb
        _require_positive(cpu_seconds=cpu_seconds, wall_seconds=wall_seconds, memory_mb=memory_mb)
        if os.getpid() != self._owner:
            raise RuntimeError("a WorkerPool cannot be used in a fork of the process that made it")

        outcomes: dict[int, Outcome] = {}
        crashed: set[int] = set()
        todo = deque(range(len(arguments)))
        with self._lock:
            # An interrupted run leaves checks behind; their late answers must not reach this one.
            self._discard_unusable()
            try:
                while len(outcomes) < len(arguments):
                    for worker in self._idle(len(todo)):
                        if function not in worker.loaded:
                            worker.load(function, self.start_seconds)
                        elif todo:
                            task = todo.popleft()
                            worker.check(task, function, wall_seconds, arguments[task], cpu_seconds, memory_mb)
                    for worker, task, outcome in self._answers():
                        if task == LOADING:
                            if outcome is None or outcome.status != "ok":
                                reason = worker.obituary() if outcome is None else outcome.detail
                                raise UserError(f"a reward worker could not load {worker.function!r}: {reason}")
                        elif outcome is not None and worker.may_have_leaked(outcome):
                            todo.appendleft(task)
                        elif outcome is not None:
                            outcomes[task] = outcome
                        elif task in crashed:
                            outcomes[task] = Outcome(None, "error", f"the worker died twice: {worker.obituary()}")
                        else:
                            crashed.add(task)
                            todo.appendleft(task)
            finally:
                self._discard_unusable()
        return [outcomes[task] for task in range(len(arguments))]

    def close(self) -> None:
        """Kill the workers. The pool can be used again and then starts new ones."""
        with self._lock:
            _kill_all(self._live, self._owner)

    def _idle(self, wanted: int) -> list[WorkerProcess]:
        """Workers without a task, new ones included while there is work for them."""
        idle = [worker for worker in self._live if worker.task is None]
        for _ in range(min(self.workers - len(self._live), wanted - len(idle))):
            worker = WorkerProcess()
            self._live.append(worker)
            idle.append(worker)
        return idle[:wanted]

    def _answers(self) -> list[tuple[WorkerProcess, int, Outcome | None]]:
        """Wait for the busy workers; (worker, task, outcome) of those that answered, ran into a limit
        or died (outcome None). The latter two are discarded."""
        busy = [(worker, worker.task) for worker in self._live if worker.task is not None]
        patience = min(worker.deadline for worker, _ in busy) - time.monotonic()
        ready = wait([worker.connection for worker, _ in busy], max(0.0, patience))
        answers: list[tuple[WorkerProcess, int, Outcome | None]] = []
        for worker, task in busy:
            if worker.connection in ready:
                outcome = worker.answer()
            elif time.monotonic() >= worker.deadline:
                outcome = Outcome(None, "timeout", "out of wall-clock time")
            else:
                continue
            if outcome is None or outcome.status == "timeout":
                self._discard(worker)
            answers.append((worker, task, outcome))
        return answers

    def _discard_unusable(self) -> None:
        """Discard the dead and those with a check. Those still loading stay: a short run must not keep
        them from ever being ready."""
        for worker in list(self._live):
            if worker.task not in (None, LOADING) or not worker.alive:
                self._discard(worker)

    def _discard(self, worker: WorkerProcess) -> None:
        worker.kill()
        self._live.remove(worker)


def _kill_all(workers: list[WorkerProcess], owner: int) -> None:
    if os.getpid() == owner:  # a fork inherits the list, not the workers
        while workers:
            workers.pop().kill()


def _require_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if number <= 0:
            raise UserError(f"WorkerPool: {name} must be positive, got {number}")


@lru_cache(maxsize=1)
def shared_pool() -> WorkerPool:
    """The pool all rewards of this process share: half the cores, at least 2 and at most 8 workers."""
    return WorkerPool(workers=max(2, min(8, len(os.sched_getaffinity(0)) // 2)))
