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
from typing import Any, NamedTuple

from lit_rlvr.environments.base import Environment, Observation, pickled
from lit_rlvr.environments.episode import RESET, REWARD, Player
from lit_rlvr.errors import UserError
from lit_rlvr.types import RewardResult, Sample, Turn
from lit_rlvr.workers.pool import RESTARTS
from lit_rlvr.workers.process import LOADING, Function, Outcome, WorkerProcess

TWICE = 2
"""How often a call is tried whose worker dies for no known reason, or runs out of memory that others may hold."""


class Reply(NamedTuple):
    """What is known of an episode.

    begun: the text of `reset`. observation: the answer to the last turn; None before the first.
    outcome: the reward, at the end of the episode; None before, or if the environment judges nothing.
    """

    begun: str | None
    observation: Observation | None = None
    outcome: RewardResult | None = None


@dataclass
class _Call:
    """Bring episode `number` up to the last of its turns, and to its end if it is to be judged."""

    number: int
    batch: int
    seed: int
    sample: Sample
    turns: Sequence[Turn]
    judge: bool
    tries: int = 0


@dataclass
class _Seat:
    """A place for one worker process, and the calls of the episodes that live in it, one at a time.

    known: episodes that its process knows, and how many turns each has had. asked: the last call of an environment.
    failed: times in a row that the process died while loading.
    """

    process: WorkerProcess | None = None
    calls: deque[_Call] = field(default_factory=deque)
    current: _Call | None = None
    known: dict[int, tuple[int, Reply]] = field(default_factory=dict)
    asked: int = RESET
    failed: int = 0


class EpisodeWorkers:
    """Calls environments in worker processes without waiting for them.

    An episode's number decides which worker it lives in. A worker that hits a limit or dies is replaced; its other
    episodes are played again from their turns, in the new one, when they are called next. Limits hold for each call of
    an environment, also when it is played again.

    Args:
        environment: every episode gets a copy.
        workers: number of processes; results do not depend on it. Default: half the cores, at least 2, at most 8.
        start_seconds: wall-clock time to start a worker and import the environment.
    """

    def __init__(self, environment: Environment, workers: int | None = None, start_seconds: float = 60.0) -> None:
        pickled(environment)  # refuses what cannot be sent, by its name
        self._function = Function(type(environment).__name__, pickle.dumps(Player(environment)))
        self._limits = asdict(environment.limits)
        self._seats = [_Seat() for _ in range(workers or max(2, min(8, len(os.sched_getaffinity(0)) // 2)))]
        self._start_seconds = start_seconds
        self._batch = 0
        self._ready: list[tuple[int, Outcome]] = []
        # Workers die with the thread that starts them, so this one, which lives as long as they, starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="lit-rlvr-environments")
        self._finalizer = weakref.finalize(self, _kill_all, self._seats, os.getpid())  # also at exit

    def call(self, number: int, seed: int, sample: Sample, turns: Sequence[Turn] = (), judge: bool = False) -> None:
        """Bring an episode up to the last of its turns; the outcome, whose value is a `Reply`, comes with `outcomes`.

        Args:
            number: names the episode until `forget`.
            seed: of its random numbers.
            turns: all its turns so far.
            judge: it ends here, also if the environment would go on.
        """
        seat = self._seats[number % len(self._seats)]
        seat.calls.append(_Call(number, self._batch, seed, sample, turns, judge))
        self._feed(seat)

    def outcomes(self, least: int) -> list[tuple[int, Outcome]]:
        """Episode numbers and outcomes of the calls that have ended, after waiting for at least `least` of them.

        Raises:
            UserError: the environment cannot be loaded, or it found an error in the configuration.
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
        """Drop all episodes; a worker that is busy with one is replaced."""
        self._ready = []
        self._batch += 1
        for seat in self._seats:
            seat.calls.clear()
            seat.known.clear()
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
        if seat.current is None:
            seat.current = seat.calls.popleft()
            seat.current.tries = 1
        self._next(seat, seat.current)

    def _next(self, seat: _Seat, call: _Call) -> None:
        """Ask the seat's worker for the next thing that a call needs, or end the call."""
        steps, reply = seat.known.get(call.number, (-1, Reply(None)))
        done = reply.observation is not None and reply.observation.done
        if steps < len(call.turns):
            self._ask(seat, call, steps + 1, call.turns[steps] if steps >= 0 else None)
        elif call.judge or done:
            self._ask(seat, call, REWARD, None)
        else:
            self._end(seat, Outcome(reply, "ok"))

    def _ask(self, seat: _Seat, call: _Call, number: int, turn: Turn | None) -> None:
        assert seat.process is not None
        wall, cpu, memory = (self._limits[name] for name in ("wall_seconds", "cpu_seconds", "memory_mb"))
        arguments = (call.batch, call.number, call.seed, number, call.sample, turn)
        seat.asked = number
        seat.process.check(call.number, self._function, wall, arguments, cpu, memory)

    def _told(self, seat: _Seat, call: _Call, value: Any) -> None:
        """A worker answered the call of an environment that it was asked for."""
        if isinstance(value, UserError):
            raise value
        _, reply = seat.known.get(call.number, (-1, Reply(None)))
        if seat.asked == REWARD:
            seat.known.pop(call.number)
            self._end(seat, Outcome(reply._replace(outcome=value), "ok"))
            return
        reply = Reply(value) if seat.asked == RESET else reply._replace(observation=value)
        seat.known[call.number] = (seat.asked, reply)
        self._next(seat, call)

    def _hear(self, seat: _Seat) -> None:
        """Read a worker's reply, or notice its death."""
        worker = seat.process
        assert worker is not None
        loading, alone = worker.task == LOADING, len(seat.known) <= 1
        outcome = worker.answer()
        if loading or seat.current is None:
            self._loaded(seat, outcome)
        elif outcome is None:
            self._discard(seat)
            lost = f"the environment's worker died twice: {worker.obituary()}"
            self._retry_or(seat, Outcome(None, "error", lost))
        elif outcome.detail.startswith("MemoryError") and not alone:  # memory that other episodes may hold
            self._discard(seat)
            self._retry_or(seat, outcome)
        elif outcome.status == "ok":
            self._told(seat, seat.current, outcome.value)
        else:
            seat.known.pop(seat.current.number, None)
            self._end(seat, outcome)

    def _late(self, seat: _Seat) -> None:
        """A worker has not answered in time."""
        worker = seat.process
        assert worker is not None
        if worker.task == LOADING or seat.current is None:
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
            seat.current.tries += 1
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
        seat.known.clear()
        if seat.process is not None:
            seat.process.kill()
            seat.process = None


def _kill_all(seats: Sequence[_Seat], owner: int) -> None:
    if os.getpid() == owner:  # a fork inherits the list, not the workers
        for seat in seats:
            EpisodeWorkers._discard(seat)
