"""The worker processes that environments live in: an episode stays in one, and is played again if it is lost."""

from __future__ import annotations

import os
import pickle
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from typing import Any

from lit_rlvr.environments.base import Environment, pickled
from lit_rlvr.environments.episode import Player
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.pool import RESTARTS
from lit_rlvr.rewards.process import LOADING, Function, Outcome, WorkerProcess

TWICE = 2
"""How often a call is tried whose worker dies for no known reason, or runs out of memory that others may hold."""


@dataclass
class _Call:
    number: int
    arguments: tuple[Any, ...]
    tries: int = 0


@dataclass
class _Seat:
    """A place for one worker process, and the calls of the episodes that live in it, one at a time."""

    process: WorkerProcess | None = None
    calls: deque[_Call] = field(default_factory=deque)
    current: _Call | None = None
    failed: int = 0  # times in a row that it died while loading


class EpisodeWorkers:
    """Calls environments in worker processes without waiting for them.

    An episode's number decides which worker it lives in. A worker that hits a limit or dies is replaced; its other
    episodes are played again from their turns, in the new one, when they are called next.

    Args:
        environment: every episode gets a copy.
        workers: number of processes; results do not depend on it. Default: half the cores, at least 2, at most 8.
        start_seconds: wall-clock time to start a worker and import the environment.
    """

    def __init__(self, environment: Environment, workers: int | None = None, start_seconds: float = 60.0) -> None:
        self._function = Function(type(environment).__name__, pickle.dumps(Player(pickled(environment))))
        self._limits = asdict(environment.limits)
        self._seats = [_Seat() for _ in range(workers or max(2, min(8, len(os.sched_getaffinity(0)) // 2)))]
        self._start_seconds = start_seconds
        self._ready: list[tuple[int, Outcome]] = []
        # Workers die with the thread that starts them, so this one, which lives as long as they, starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="lit-rlvr-environments")
        self._finalizer = weakref.finalize(self, _kill_all, self._seats, os.getpid())  # also at exit

    def call(self, number: int, *arguments: Any) -> None:
        """Call `Player` for episode `number`; the outcome comes with `outcomes`."""
        seat = self._seats[number % len(self._seats)]
        seat.calls.append(_Call(number, arguments))
        self._feed(seat)

    def outcomes(self, least: int) -> list[tuple[int, Outcome]]:
        """Episode numbers and outcomes of the calls that have ended, after waiting for at least `least` of them.

        Raises:
            UserError: the environment cannot be loaded.
        """
        while True:
            busy = [seat for seat in self._seats if seat.process is not None and seat.process.task is not None]
            if not busy:
                break
            enough = len(self._ready) >= least
            patience = min(seat.process.deadline for seat in busy if seat.process) - time.monotonic()
            connections = [seat.process.connection for seat in busy if seat.process]
            ready = wait(connections, 0 if enough else max(0.0, patience))
            now = time.monotonic()
            heard = [seat for seat in busy if seat.process and seat.process.connection in ready]
            late = [seat for seat in busy if seat not in heard and seat.process and now >= seat.process.deadline]
            for seat in heard:
                self._hear(seat)
            for seat in late:
                self._late(seat)
            if enough and not heard and not late:
                break
        found, self._ready = self._ready, []
        return found

    def forget(self) -> None:
        """Drop all calls; a worker that is busy with one is replaced."""
        self._ready = []
        for seat in self._seats:
            seat.calls.clear()
            if seat.current is not None:
                self._discard(seat)
                seat.current = None

    def close(self) -> None:
        """Kill the workers; they start again when they are called."""
        self.forget()
        _kill_all(self._seats, os.getpid())

    def _feed(self, seat: _Seat) -> None:
        """Give a seat's worker the next thing to do, if it is free."""
        if not seat.calls and seat.current is None:
            return
        if seat.process is None or not seat.process.alive:
            self._discard(seat)
            seat.process = self._starter.submit(WorkerProcess).result()
        worker = seat.process
        if worker.task is not None:
            return
        if self._function.key not in worker.loaded:
            worker.load(self._function, self._start_seconds)
            return
        seat.current = seat.current or seat.calls.popleft()
        seat.current.tries += 1
        wall, cpu, memory = (self._limits[name] for name in ("wall_seconds", "cpu_seconds", "memory_mb"))
        worker.check(seat.current.number, self._function, wall, seat.current.arguments, cpu, memory)

    def _hear(self, seat: _Seat) -> None:
        """Read a worker's reply, or notice its death."""
        worker = seat.process
        assert worker is not None
        loading, alone = worker.task == LOADING, worker.checks == 0
        outcome = worker.answer()
        if loading:
            self._loaded(seat, outcome)
        elif outcome is None:
            self._discard(seat)
            lost = f"the environment's worker died twice: {worker.obituary()}"
            self._retry_or(seat, Outcome(None, "error", lost))
        elif outcome.detail.startswith("MemoryError") and not alone:  # memory that other episodes may hold
            self._discard(seat)
            self._retry_or(seat, outcome)
        else:
            self._end(seat, outcome)

    def _late(self, seat: _Seat) -> None:
        """A worker has not answered in time."""
        worker = seat.process
        assert worker is not None
        if worker.task == LOADING:
            worker.kill()
            self._loaded(seat, None)
        else:
            self._end(seat, Outcome(None, "timeout", "out of wall-clock time"))

    def _loaded(self, seat: _Seat, outcome: Outcome | None) -> None:
        worker = seat.process
        assert worker is not None
        seat.failed = seat.failed + 1 if outcome is None else 0
        if seat.failed > RESTARTS or (outcome is not None and outcome.status != "ok"):
            self._discard(seat)
            reason = worker.obituary() if outcome is None else outcome.detail
            raise UserError(f"rollout.environment: a worker could not load {self._function.name}: {reason}")
        self._feed(seat)

    def _retry_or(self, seat: _Seat, outcome: Outcome) -> None:
        """Try the current call again in a new worker, or give up with `outcome`."""
        assert seat.current is not None
        if seat.current.tries < TWICE:
            self._feed(seat)
        else:
            self._end(seat, outcome)

    def _end(self, seat: _Seat, outcome: Outcome) -> None:
        """The current call ended."""
        assert seat.current is not None
        if outcome.status == "timeout":  # killed, or in a state that nobody knows
            self._discard(seat)
        self._ready.append((seat.current.number, outcome))
        seat.current = None
        self._feed(seat)

    @staticmethod
    def _discard(seat: _Seat) -> None:
        if seat.process is not None:
            seat.process.kill()
            seat.process = None


def _kill_all(seats: Sequence[_Seat], owner: int) -> None:
    if os.getpid() == owner:  # a fork inherits the list, not the workers
        for seat in seats:
            EpisodeWorkers._discard(seat)
