"""Plays episodes inside a worker process. Imports nothing heavy."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lit_rlvr.rewards.base import as_result

if TYPE_CHECKING:
    from lit_rlvr.environments.base import Environment, Observation
    from lit_rlvr.types import RewardResult, Sample, Turn


class Reply(NamedTuple):
    """What a worker says of an episode.

    begun: the text of `reset`. observation: the answer to the last turn; None before the first.
    outcome: the reward, at the end of the episode; None before, or if the environment judges nothing.
    """

    begun: str | None
    observation: Observation | None
    outcome: RewardResult | None


@dataclass
class _Episode:
    """An environment, and how far it has come."""

    environment: Environment
    begun: str | None
    steps: int = 0
    observation: Observation | None = None


class Player:
    """Plays the episodes of one worker. An episode that it does not know is played again from its turns.

    Args:
        environment: pickled; every episode gets a copy of its own.
    """

    def __init__(self, environment: bytes) -> None:
        self._environment = environment
        self._batch = -1
        self._episodes: dict[int, _Episode] = {}

    def __call__(self, batch: int, number: int, seed: int, sample: Sample, turns: Sequence[Turn], judge: bool) -> Reply:
        """Bring an episode up to its last turn.

        Args:
            batch: episodes of earlier batches are forgotten.
            number: names the episode in its batch.
            seed: of the episode; Python's `random` is seeded with it and the number of the call.
            turns: all its turns so far.
            judge: it ends here, also if the environment would go on.
        """
        if batch != self._batch:
            self._batch, self._episodes = batch, {}
        episode = self._episodes.get(number) or self._begin(number, seed, sample)
        while episode.steps < len(turns):
            episode.steps += 1
            _seed(seed, episode.steps)
            episode.observation = _checked(episode.environment.step(turns[episode.steps - 1]))
        seen, outcome = episode.observation, None
        if judge or (seen is not None and seen.done):
            _seed(seed, -1)
            said = episode.environment.reward()
            outcome = None if said is None else _judged(as_result(said))
            del self._episodes[number]
        return Reply(episode.begun, seen, outcome)

    def _begin(self, number: int, seed: int, sample: Sample) -> _Episode:
        environment = pickle.loads(self._environment)
        _seed(seed, 0)
        begun = environment.reset(sample)
        if begun is not None and not isinstance(begun, str):
            raise TypeError(f"reset must return a text or None, got {type(begun).__name__}")
        self._episodes[number] = _Episode(environment, begun)
        return self._episodes[number]


def _seed(seed: int, call: int) -> None:
    """Seed the global generators for one call, so that a replay draws the same numbers."""
    random.seed(f"{seed} {call}")
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(random.getrandbits(32))


def _checked(value: object) -> Observation:
    from lit_rlvr.environments.base import Observation

    if not isinstance(value, Observation) or not isinstance(value.text, str):
        raise TypeError(f"step must return an Observation, got {type(value).__name__}")
    return value


def _judged(result: RewardResult) -> RewardResult:
    """With `correct`: value 1 is right unless the environment says otherwise."""
    from dataclasses import replace

    if result.correct is not None or result.status == "error":
        return result
    return replace(result, correct=result.value == 1)
