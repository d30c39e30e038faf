"""Episodes: `Player` plays them inside a worker process, `EpisodeWorkers` sends them there. Imports nothing heavy."""

from __future__ import annotations

import math
import pickle
import random
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

from lit_rlvr.environments.base import Environment, Observation, Opening, pickled
from lit_rlvr.environments.tools import is_content
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.rewards.base import as_result
from lit_rlvr.rewards.forms import accepted_arguments, as_messages, turn_message
from lit_rlvr.rewards.function import resolved
from lit_rlvr.types import RewardResult, Sample, Turn
from lit_rlvr.workers.pool import Job, Requests, WorkerPool, default_workers, listen
from lit_rlvr.workers.process import Function, Outcome, WorkerProcess

RESET, REWARD = 0, -1
"""The numbers of these calls of an environment; calls of `step` are counted from 1."""


class Player:
    """The environments of the episodes that live in one worker.

    Args:
        environment: every episode gets a copy of its own.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._batch = -1
        self._episodes: dict[int, tuple[Environment, list[dict[str, Any]]]] = {}  # with the messages since the prompt

    def __call__(self, batch: int, number: int, seed: int, call: int, sample: Sample, turn: Turn | None) -> Any:
        """Make one call of an episode's environment.

        Args:
            batch: episodes of earlier batches are forgotten.
            number: names the episode in its batch.
            seed: the episode's seed; Python's `random` is seeded with it and the number of the call, and for `reset`
                with the sample's id.
            call: `RESET`, the number of a `step`, or `REWARD`, which ends the episode.
            sample: the sample that the episode belongs to.
            turn: the model's turn, for a step.

        Returns:
            What `reset` returned, the observation of `step`, or the judgement of `reward` with those of the reward
            functions.
        """
        if batch != self._batch:
            self._batch = batch
            self._episodes = {}
        random.seed(f"{sample.id} reset" if call == RESET else f"{seed} {call}")
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(random.getrandbits(32))
        try:
            return self._call(number, call, sample, turn)
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(first_line(error)) from error

    def _call(self, number: int, call: int, sample: Sample, turn: Turn | None) -> Any:
        if call == RESET:
            environment = deepcopy(self._environment)
            self._episodes[number] = environment, []
            return _opening(environment.reset(sample))
        if call == REWARD:
            environment, messages = self._episodes.pop(number)
            reward = environment.reward()
            outcome = None if reward is None else correct_if_one(as_result(reward))
            return outcome, judge_episode(environment, messages, sample)
        assert turn is not None, "a step has a turn"
        environment, messages = self._episodes[number]
        seen = _checked(environment.step(turn))
        if seen.reward is not None and not environment.rewards_turns:
            raise UserError(
                f"rollout.environment: step of {environment.title} gives a turn a reward; set rewards_turns = True in "
                "the class, so that the run counts it"
            )
        messages += messages_of(turn, seen, environment.role)
        return seen


def messages_of(turn: Turn, seen: Observation, role: str) -> list[dict[str, Any]]:
    """Return a turn and its answer as chat messages."""
    messages = [turn_message(turn)]
    if seen.done:
        return messages
    if seen.results:
        answers = []
        for result in seen.results:
            answers.append({"role": "tool", "name": result.name, "content": result.text})
        return messages + answers
    return [*messages, {"role": role, "content": seen.text}]


def judge_episode(environment: Environment, messages: list[dict[str, Any]], sample: Sample) -> dict[str, RewardResult]:
    """Return what each reward function says of an episode; one that raises has status "error".

    A function gets lists of one: the environment, the prompt, the completion as messages, and the row's columns.
    """
    results = {}
    for name, function in environment.reward_functions.items():
        columns = {
            **{column: [value] for column, value in sample.row.items()},
            "prompts": [as_messages(sample.prompt)],
            "completions": [messages],
            "environments": [environment.holder],
        }
        try:
            (value,) = resolved(function(**accepted_arguments(function, columns)))
            results[name] = as_result(value)
        except MemoryError:
            raise
        except Exception as error:
            results[name] = RewardResult(0.0, None, "error", first_line(error))
    return results


def _opening(begun: Any) -> Opening:
    """Check what `reset` returned, and replace what cannot be encoded in it."""
    if begun is None:
        return None
    if isinstance(begun, str):
        return _plain(begun)
    if is_content(begun):
        blocks = []
        for block in begun:
            if block["type"] == "text":
                block = block | {"text": _plain(block["text"])}
            blocks.append(block)
        return blocks
    if isinstance(begun, list) and begun and all(isinstance(m, dict) and {"role", "content"} <= {*m} for m in begun):
        return begun
    raise TypeError(f"reset must return a text, content blocks, chat messages or None, got {type(begun).__name__}")


def _plain(text: str) -> str:
    """Replace what cannot be encoded: lone surrogates, as in names of files."""
    return text.encode("utf-8", "replace").decode()


def _checked(value: object) -> Observation:
    """Check what `step` returned, and replace what cannot be encoded in its text."""
    if not isinstance(value, Observation):
        raise TypeError(f"step must return an Observation, got {type(value).__name__}")
    results = tuple(replace(result, text=_plain(result.text)) for result in value.results)
    reward = value.reward
    if reward is not None:
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise TypeError(f"the reward of an Observation must be a finite number or None, got {reward!r}")
        reward = float(reward)
    return replace(value, text=_plain(value.text), results=results, reward=reward)


def correct_if_one(result: RewardResult) -> RewardResult:
    """Set `correct`: value 1 is right unless the environment says otherwise."""
    is_open = result.correct is None and result.status != "error"
    if is_open:
        return replace(result, correct=result.value == 1)
    return result


class EpisodeReply(NamedTuple):
    """The state of an episode.

    begun: what `reset` returned. observation: the answer to the last turn; None before the first.
    outcome: the reward, at the end of the episode; None before, or if the environment judges nothing.
    reward_results: the results of the reward functions that get the environment, by name, at the end.
    """

    begun: Opening
    observation: Observation | None = None
    outcome: RewardResult | None = None
    reward_results: Mapping[str, RewardResult] = {}


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

    def __init__(self, environment: Environment, workers: int | None = None, start_seconds: float = 180.0) -> None:
        pickled(environment)  # refuses what cannot be sent, by its name
        self._function = Function(f"rollout.environment: {environment.title}", pickle.dumps(Player(environment)))
        self._limits = environment.limits
        self._pools = [WorkerPool(1, start_seconds=start_seconds) for _ in range(workers or default_workers())]
        self._batch = 0
        # episode -> its worker, turns so far, reply
        self._known: dict[int, tuple[WorkerProcess | None, int, EpisodeReply]] = {}

    def call(self, number: int, seed: int, sample: Sample, turns: Sequence[Turn] = (), judge: bool = False) -> None:
        """Bring an episode up to the last of its turns; its outcome, an `EpisodeReply`, comes with `outcomes`.

        Args:
            number: names the episode until `forget`.
            seed: the seed of its random numbers.
            sample: the sample that the episode belongs to.
            turns: all its turns so far.
            judge: end the episode here, even if the environment would go on.
        """
        play = partial(self._play, number, seed, sample, turns, judge)
        self._pools[number % len(self._pools)].submit(Job(number, self._function, self._limits, play))

    def outcomes(self, min_outcomes: int) -> list[tuple[int, Outcome]]:
        """Return episode numbers and outcomes of the calls that have ended; wait for at least `min_outcomes` of them.

        Raises:
            UserError: the environment cannot be loaded, or it found an error in the configuration.
        """
        results = listen(self._pools, block=False)
        while len(results) < min_outcomes and not all(pool.is_done for pool in self._pools):
            results += listen(self._pools)
        return results

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
        previous_worker, played, reply = self._known.pop(number, (None, RESET - 1, EpisodeReply(None)))
        if previous_worker is not worker:  # that one was lost
            played = RESET - 1
            reply = EpisodeReply(None)
        while played < len(turns):
            turn = None
            if played >= RESET:
                turn = turns[played]
            played += 1
            value = yield self._batch, number, seed, played, sample, turn
            if played == RESET:
                reply = EpisodeReply(value)
            else:
                reply = reply._replace(observation=value)
        if judge or (reply.observation is not None and reply.observation.done):
            outcome, results = yield self._batch, number, seed, REWARD, sample, None
            return reply._replace(outcome=outcome, reward_results=results)
        self._known[number] = worker, played, reply
        return reply
