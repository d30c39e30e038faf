"""Killable worker processes for checks of untrusted answers and for environments.

Every call runs in a worker process (`worker.py`) under limits on CPU time, memory and, as the last resort, wall-clock
time. CPU time comes first because it does not depend on how busy the machine is: the same answer gets the same status
when a run is repeated or resumed.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.log import log
from lit_rlvr.common.terminal import progress
from lit_rlvr.errors import UserError
from lit_rlvr.workers.process import Function, Isolation, Outcome, WorkerProcess

SLOW_REWARD_SECONDS = 30.0
"""Seconds before a slow reward is first logged, and between later log lines."""


class Waiting:
    """A log line, every `SLOW_REWARD_SECONDS` seconds, about a reward that is still judging a batch.

    The seconds count from the start of the batch; while nothing else is going on, from the start of the scoring, which
    may consist of many short batches.

    Args:
        reward: its name in messages.
        rows: the row that each completion of the batch answers; "" for a judge's question.
    """

    def __init__(self, reward: str, rows: Sequence[str]) -> None:
        self._reward = reward
        self._rows = rows
        self._begun: dict[int, None] = {}  # the completions being judged, in order
        self._done: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lit-rlvr-waiting", daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._over.set()
        progress.waiting.pop(self._reward, None)

    @contextmanager
    def judging(self, number: int) -> Iterator[None]:
        """Record that the reward judges completion `number` of the batch, until the body ends."""
        self._begun[number] = None
        progress.waiting.setdefault(self._reward, time.time())
        try:
            yield
        finally:
            self._begun.pop(number, None)
            self._done.add(number)
            if not self._begun:
                progress.waiting.pop(self._reward, None)

    def _watch(self) -> None:
        begun = time.time()
        if progress.stage == "scoring":
            since = min(begun, progress.since)
        else:
            since = begun
        times = int((begun - since) / SLOW_REWARD_SECONDS) + 1
        while not self._over.wait(max(0.0, since + times * SLOW_REWARD_SECONDS - time.time())):
            names = []
            for number in list(self._begun)[:1]:
                names.append(self._rows[number])
            row = "".join(f", now row {name}" for name in names if name)
            if not (self._begun or self._done):
                row = "; worker processes are still starting"
            counts = (len(self._done), len(self._rows))
            seconds = f"{times * SLOW_REWARD_SECONDS:g} s{' of scoring' if since < begun else ''}"
            log.warning("waiting for %s, %s: %d of %d judged%s", self._reward, seconds, *counts, row)
            times += 1


RESTARTS = 3
"""The number of times in a row that workers may die while loading before the run ends, per worker of a pool."""

Requests = Generator[tuple[Any, ...], Any, Any]
"""The calls of a job: yields the arguments of each, is sent its value, and returns the value of the job."""


@dataclass(eq=False)
class Job:
    """One or several calls of a function in the same worker.

    Args:
        number: its name in the outcomes.
        function: what each call runs.
        limits: limits on each call.
        begin: starts the calls in a worker; called again if that worker is lost.
        requests: the calls in the current worker.
        has_died: whether an earlier worker died.
    """

    number: int
    function: Function
    limits: Isolation
    begin: Callable[[WorkerProcess], Requests]
    requests: Requests = field(init=False)
    has_died: bool = False


class WorkerPool:
    """Worker processes that run functions: they start on first use and are replaced when they die.

    A job whose worker dies for a reason other than its limits is repeated once. One whose worker runs out of memory is
    repeated until a fresh worker has done it alone, because earlier jobs may hold the memory. A worker that dies while
    loading is replaced, at most a few times in a row.

    Args:
        workers: number of processes; results do not depend on it.
        cpu_seconds: CPU time of one call.
        wall_seconds: wall-clock time of one call, the last resort (a check that sleeps or waits).
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
        start_seconds: float = 180.0,
    ) -> None:
        check_within("(0, inf)", "WorkerPool", workers=workers, start_seconds=start_seconds)
        self.workers = workers
        self.start_seconds = start_seconds
        self.limits = Isolation(cpu_seconds, wall_seconds, memory_mb)
        self._todo: deque[Job] = deque()
        self._running: dict[WorkerProcess, Job] = {}
        self._ended: list[tuple[int, Outcome]] = []
        self._restarts = RESTARTS * workers
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
        waiting: Waiting | None = None,
        **limits: Any,
    ) -> list[Outcome]:
        """Call `function` ("module:name") once per tuple of arguments; return the outcomes in that order.

        Args:
            function: the function, or its name "module:name".
            arguments: the arguments of each call, picklable, like the values.
            waiting: logs calls that take long.
            limits: the limits of `Isolation` that differ from the pool's.

        Raises:
            UserError: a worker could not start or load the function, or the function raised it.
        """
        if isinstance(function, str):
            function = Function(function)
        applied = replace(self.limits, **limits)

        def call(number: int, worker: WorkerProcess) -> Requests:
            with nullcontext() if waiting is None else waiting.judging(number):
                return (yield arguments[number])

        with self._lock:
            self.forget()  # an interrupted call leaves jobs behind
            outcomes: dict[int, Outcome] = {}
            try:
                for number in range(len(arguments)):
                    self.submit(Job(number, function, applied, partial(call, number)))
                while len(outcomes) < len(arguments):
                    outcomes.update(listen([self]))
            finally:
                self.forget()
        return [outcomes[number] for number in range(len(arguments))]

    def submit(self, job: Job) -> None:
        """Add a job, which `listen` will return. One thread calls both, and not `run` in between."""
        self._todo.append(job)
        self.feed()

    def forget(self) -> None:
        """Drop all jobs; a worker that is busy with one is replaced.

        Workers still loading are kept: otherwise short calls would never let one become ready.
        """
        if os.getpid() != self._owner:
            raise RuntimeError("a WorkerPool cannot be used in a fork of the process that made it")
        self._todo.clear()
        self._ended.clear()
        self._running.clear()
        self._restarts = RESTARTS * self.workers
        for worker in list(self._live):
            if worker.asked == "run" or not worker.alive:
                self._discard(worker)

    def close(self) -> None:
        """Kill the workers and drop all jobs. The pool can be used again; it then starts new ones."""
        with self._lock:
            if os.getpid() == self._owner:
                self.forget()
                _kill_all(self._live, self._owner)

    @property
    def is_done(self) -> bool:
        """Whether `listen` has returned every job."""
        return not (self._todo or self._running or self._ended)

    def busy(self) -> list[WorkerProcess]:
        """Return the workers that `listen` waits for."""
        workers = []
        for worker in self._live:
            if worker.asked is not None:
                workers.append(worker)
        return workers

    def feed(self) -> None:
        """Let free workers load functions and begin jobs, starting workers while there is work for more."""
        for worker in list(self._live):
            if worker.asked is None and not worker.alive:
                self._discard(worker)
        free = sorted((w for w in self._live if w.asked != "run"), key=lambda w: w.asked == "load")
        for _ in range(min(self.workers - len(self._live), len(self._todo) - len(free))):
            worker = self._starter.submit(WorkerProcess).result()
            self._live.append(worker)
            free.append(worker)
        for worker in free[: len(self._todo)]:
            while worker.asked is None and self._todo:
                if self._todo[0].function.key in worker.loaded:
                    self._begin(worker, self._todo.popleft())
                else:
                    worker.load(self._todo[0].function, self.start_seconds)

    def hear(self, worker: WorkerProcess) -> None:
        """Read a worker's answer, or notice that it hit a limit or died."""
        outcome = worker.answer()
        job = self._running.get(worker)
        if outcome is None or outcome.status == "timeout":
            self._discard(worker)
        if job is None:
            if outcome is None:
                self._restarts = self._restarts - 1
            else:
                self._restarts = RESTARTS * self.workers
            if self._restarts < 0 or (outcome is not None and outcome.status != "ok"):
                if outcome is None:
                    reason = worker.obituary()
                else:
                    reason = outcome.detail
                raise UserError(f"a worker process could not load {worker.function.name!r}: {reason}")
        elif outcome is None and not job.has_died:
            job.has_died = True
            self._repeat(job)
        elif outcome is None:
            self._end(worker, job, Outcome(None, "error", f"the worker died twice: {worker.obituary()}"))
        elif worker.jobs > 1 and outcome.detail.startswith("MemoryError"):
            self._repeat(job)
        elif outcome.status == "ok":
            self._proceed(worker, job, outcome.value)
        else:
            self._end(worker, job, outcome)

    def take_ended(self) -> list[tuple[int, Outcome]]:
        """Return the jobs that have ended since the last call, as (number, outcome)."""
        ended = self._ended
        self._ended = []
        return ended

    def _begin(self, worker: WorkerProcess, job: Job) -> None:
        worker.jobs += 1
        self._running[worker] = job
        job.requests = job.begin(worker)
        self._proceed(worker, job, None)

    def _proceed(self, worker: WorkerProcess, job: Job, value: Any) -> None:
        """Ask the worker for a job's next call, given the value of the last one."""
        try:
            worker.call(job.function, job.limits, job.requests.send(value))
        except StopIteration as end:
            self._end(worker, job, Outcome(end.value, "ok"))

    def _end(self, worker: WorkerProcess, job: Job, outcome: Outcome) -> None:
        job.requests.close()
        self._running.pop(worker, None)
        self._ended.append((job.number, outcome))

    def _repeat(self, job: Job) -> None:
        job.requests.close()
        self._todo.appendleft(job)

    def _discard(self, worker: WorkerProcess) -> None:
        worker.kill()
        self._live.remove(worker)
        self._running.pop(worker, None)


def listen(pools: Sequence[WorkerPool], block: bool = True) -> list[tuple[int, Outcome]]:
    """Wait for the busy workers of some pools, and give them their next work.

    Args:
        pools: the pools.
        block: wait until a worker has answered, hit a limit or died; else only look whether one has.

    Returns:
        (number, outcome) of the jobs that have ended.

    Raises:
        UserError: a worker could not load a function, or a function raised it.
    """
    busy = []
    for pool in pools:
        for worker in pool.busy():
            busy.append((pool, worker))
    patience = min((worker.deadline for _, worker in busy), default=0.0) - time.monotonic()
    ready = wait([worker.connection for _, worker in busy], max(0.0, patience) if block else 0)
    for pool, worker in busy:
        if worker.connection in ready or time.monotonic() >= worker.deadline:
            pool.hear(worker)
            pool.feed()
    ended_workers = []
    for pool in pools:
        ended_workers.extend(pool.take_ended())
    return ended_workers


def _kill_all(workers: list[WorkerProcess], owner: int) -> None:
    if os.getpid() == owner:  # a fork inherits the list, not the workers
        while workers:
            workers.pop().kill()


def default_workers() -> int:
    """Return half the cores, at least 2 and at most 8."""
    return max(2, min(8, len(os.sched_getaffinity(0)) // 2))


@lru_cache(maxsize=1)
def shared_pool() -> WorkerPool:
    """Return the pool that all rewards of this process share."""
    return WorkerPool(default_workers())
