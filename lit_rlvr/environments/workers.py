"""Episodes in worker processes: each stays in one process, and is played again if that one is lost."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from lit_rlvr.environments.base import Environment, Observation, Opening, pickled
from lit_rlvr.environments.episode import RESET, REWARD, Player
from lit_rlvr.types import RewardResult, Sample, Turn
from lit_rlvr.workers.pool import Job, Requests, WorkerPool, default_workers, listen
from lit_rlvr.workers.process import Function, Outcome, WorkerProcess


class Reply(NamedTuple):
    """The state of an episode.

    begun: what `reset` returned. observation: the answer to the last turn; None before the first.
    outcome: the reward, at the end of the episode; None before, or if the environment judges nothing.
    judged: the results of the reward functions that get the environment, by name, at the end.
    """

    begun: Opening
    observation: Observation | None = None
    outcome: RewardResult | None = None
    judged: Mapping[str, RewardResult] = {}


class EpisodeWorkers:
    """The worker processes that environments live in; a call of one does not wait for it.

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
        self._function = Function(f"rollout.environment: {environment.title}", pickle.dumps(Player(environment)))
        self._limits = environment.limits
        self._pools = [WorkerPool(1, start_seconds=start_seconds) for _ in range(workers or default_workers())]
        self._batch = 0
        self._known: dict[int, tuple[WorkerProcess | None, int, Reply]] = {}  # episode -> its worker, turns so far

    def call(self, number: int, seed: int, sample: Sample, turns: Sequence[Turn] = (), judge: bool = False) -> None:
        """Bring an episode up to the last of its turns; the outcome, whose value is a `Reply`, comes with `outcomes`.

        Args:
            number: names the episode until `forget`.
            seed: the seed of its random numbers.
            turns: all its turns so far.
            judge: end the episode here, even if the environment would go on.
        """
        play = partial(self._play, number, seed, sample, turns, judge)
        self._pools[number % len(self._pools)].submit(Job(number, self._function, self._limits, play))

    def outcomes(self, least: int) -> list[tuple[int, Outcome]]:
        """Return episode numbers and outcomes of the calls that have ended; wait for at least `least` of them.

        Raises:
            UserError: the environment cannot be loaded, or it found an error in the configuration.
        """
        found = listen(self._pools, block=False)
        while len(found) < least and not all(pool.is_done for pool in self._pools):
            found += listen(self._pools)
        return found

    def forget(self) -> None:
        """Drop all episodes; a worker that is busy with one is replaced."""
        self._batch += 1
        self._known.clear()
        for pool in self._pools:
            pool.forget()

    def close(self) -> None:
        """Kill the workers; they start again when they are called."""
        for pool in self._pools:
            pool.close()

    def _play(
        self, number: int, seed: int, sample: Sample, turns: Sequence[Turn], judge: bool, worker: WorkerProcess
    ) -> Requests:
        """Yield the arguments of the `Player` for what the episode's worker has not played yet."""
        home, played, reply = self._known.pop(number, (None, RESET - 1, Reply(None)))
        if home is not worker:  # that one was lost
            played, reply = RESET - 1, Reply(None)
        while played < len(turns):
            turn = turns[played] if played >= RESET else None
            played += 1
            value = yield self._batch, number, seed, played, sample, turn
            reply = Reply(value) if played == RESET else reply._replace(observation=value)
        if judge or (reply.observation is not None and reply.observation.done):
            outcome, judged = yield self._batch, number, seed, REWARD, sample, None
            return reply._replace(outcome=outcome, judged=judged)
        self._known[number] = worker, played, reply
        return reply
