"""Killable worker processes for checks of untrusted answers.

Every check runs in a worker process (`worker.py`) under limits on CPU time, memory and, as the last resort, wall-clock
time. CPU time comes first because it does not depend on how busy the machine is: the same answer gets the same status
when a run is repeated or resumed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.progress import DOING
from lit_rlvr.workers.process import LOADING, Function, Outcome, WorkerProcess

_log = logging.getLogger("lit_rlvr")

PATIENCE = 30.0
"""Seconds before a slow reward is first logged, and between later log lines."""


class Waiting:
    """Logs, every `PATIENCE` seconds, a reward that is still judging the same completion.

    Args:
        reward: its name in messages.
        rows: the row that each completion of the batch answers.
    """

    def __init__(self, reward: str, rows: Sequence[str]) -> None:
        self._reward, self._rows = reward, rows
        self._begun: dict[int, float] = {}  # the completions being judged -> since when
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lit-rlvr-waiting", daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._over.set()
        DOING.waiting.pop(self._reward, None)

    def begin(self, number: int) -> None:
        """Record that the reward starts to judge completion `number` of the batch."""
        self._begun[number] = time.monotonic()
        DOING.waiting.setdefault(self._reward, time.time())

    def end(self, number: int) -> None:
        """Record that it is judged, or given up for now."""
        self._begun.pop(number, None)
        if not self._begun:
            DOING.waiting.pop(self._reward, None)

    def _watch(self) -> None:
        said: dict[tuple[int, float], int] = {}
        while not self._over.wait(PATIENCE / 10):
            for number, since in list(self._begun.items()):
                times = int((time.monotonic() - since) / PATIENCE)
                if times > said.get((number, since), 0):
                    said[number, since] = times
                    _log.warning("waiting for %s, %g s (row %s)", self._reward, times * PATIENCE, self._rows[number])


RESTARTS = 3
"""How often in a row workers may die while loading before the run ends, per worker of a pool."""


class WorkerPool:
    """Runs functions in worker processes, which start on first use and are replaced when they die.

    Args:
        workers: number of processes; results do not depend on it.
        cpu_seconds: CPU time of one check.
        wall_seconds: wall-clock time of one check, the last resort (a check that sleeps or waits).
        memory_mb: address space of a worker in MiB, not counting the loading of functions.
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
        # Workers die with the thread that starts them, so this one, which lives as long as the pool, starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="lit-rlvr-workers")
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _kill_all, self._live, self._owner)  # also at exit

    def run(
        self,
        function: str | Function,
        arguments: Sequence[tuple[Any, ...]],
        *,
        cpu_seconds: float | None = None,
        wall_seconds: float | None = None,
        memory_mb: int | None = None,
        waiting: Waiting | None = None,
    ) -> list[Outcome]:
        """Call `function` ("module:name") once per tuple of arguments; outcomes in that order.

        Arguments and values must be picklable. The limits default to the pool's; `waiting` is told which checks are
        running. A worker that dies for a reason other than its limits is replaced and the check repeated once. One that
        runs out of memory is replaced, and the check repeated until a fresh worker has judged it. One that dies while
        loading is replaced, at most a few times in a row.

        Raises:
            UserError: a worker could not start or load the function.
        """
        function = Function(function) if isinstance(function, str) else function
        cpu_seconds = self.cpu_seconds if cpu_seconds is None else cpu_seconds
        wall_seconds = self.wall_seconds if wall_seconds is None else wall_seconds
        memory_mb = self.memory_mb if memory_mb is None else memory_mb
        _require_positive(cpu_seconds=cpu_seconds, wall_seconds=wall_seconds, memory_mb=memory_mb)
        if os.getpid() != self._owner:
            raise RuntimeError("a WorkerPool cannot be used in a fork of the process that made it")

        outcomes: dict[int, Outcome] = {}
        crashed: set[int] = set()
        todo = deque(range(len(arguments)))
        restarts = RESTARTS * self.workers
        with self._lock:
            # An interrupted call leaves checks behind; their late answers must not reach this call.
            self._discard_unusable()
            try:
                while len(outcomes) < len(arguments):
                    for worker in self._idle(len(todo)):
                        if function.key not in worker.loaded:
                            worker.load(function, self.start_seconds)
                        elif todo:
                            task = todo.popleft()
                            worker.check(task, function, wall_seconds, arguments[task], cpu_seconds, memory_mb)
                            if waiting is not None:
                                waiting.begin(task)
                    for worker, task, outcome in self._answers():
                        if waiting is not None:
                            waiting.end(task)
                        if task == LOADING:
                            restarts = restarts - 1 if outcome is None else RESTARTS * self.workers
                            if restarts < 0 or (outcome is not None and outcome.status != "ok"):
                                reason = worker.obituary() if outcome is None else outcome.detail
                                raise UserError(f"a reward worker could not load {worker.function.name!r}: {reason}")
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
        """Kill the workers. The pool can be used again; it then starts new ones."""
        with self._lock:
            _kill_all(self._live, self._owner)

    def _idle(self, wanted: int) -> list[WorkerProcess]:
        """Workers without a task, including new ones while there is work for them."""
        idle = [worker for worker in self._live if worker.task is None]
        for _ in range(min(self.workers - len(self._live), wanted - len(idle))):
            worker = self._starter.submit(WorkerProcess).result()
            self._live.append(worker)
            idle.append(worker)
        return idle[:wanted]

    def _answers(self) -> list[tuple[WorkerProcess, int, Outcome | None]]:
        """Wait for the busy workers; (worker, task, outcome) of those that answered, hit a limit or died (outcome
        None). The latter two are discarded."""
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
        """Discard dead workers and those with a check. Workers still loading are kept: otherwise short calls would
        never let one become ready."""
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
    """The pool that all rewards of this process share: half the cores, at least 2 and at most 8 workers."""
    return WorkerPool(workers=max(2, min(8, len(os.sched_getaffinity(0)) // 2)))
