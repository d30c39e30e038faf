"""Plays episodes inside a worker process. Imports nothing heavy."""

from __future__ import annotations

import random
import sys
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

from lit_rlvr.errors import first_line
from lit_rlvr.rewards.base import as_result

if TYPE_CHECKING:
    from lit_rlvr.environments.base import Environment, Observation
    from lit_rlvr.types import RewardResult, Sample, Turn

RESET, REWARD = 0, -1
"""The numbers of these calls of an environment; calls of `step` are counted from 1."""


class Player:
    """Calls the environments of the episodes that live in one worker.

    Args:
        environment: every episode gets a copy of its own.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._batch = -1
        self._episodes: dict[int, Environment] = {}

    def __call__(
        self, batch: int, number: int, seed: int, call: int, sample: Sample, turn: Turn | None
    ) -> str | Observation | RewardResult | None:
        """Make one call of an episode's environment.

        Args:
            batch: episodes of earlier batches are forgotten.
            number: names the episode in its batch.
            seed: the episode's seed; Python's `random` is seeded with it and the number of the call.
            call: `RESET`, the number of a `step`, or `REWARD`, which ends the episode.
            turn: the model's turn, for a step.

        Returns:
            The text of `reset`, the observation of `step`, or the judgement of `reward`.
        """
        if batch != self._batch:
            self._batch, self._episodes = batch, {}
        random.seed(f"{seed} {call}")
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(random.getrandbits(32))
        try:
            return self._call(number, call, sample, turn)
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(first_line(error)) from error

    def _call(
        self, number: int, call: int, sample: Sample, turn: Turn | None
    ) -> str | Observation | RewardResult | None:
        if call == RESET:
            self._episodes[number] = deepcopy(self._environment)
            begun = self._episodes[number].reset(sample)
            if begun is not None and not isinstance(begun, str):
                raise TypeError(f"reset must return a text or None, got {type(begun).__name__}")
            return None if begun is None else _plain(begun)
        if call == REWARD:
            said = self._episodes.pop(number).reward()
            return None if said is None else _judged(as_result(said))
        assert turn is not None, "a step has a turn"
        return _checked(self._episodes[number].step(turn))


def _plain(text: str) -> str:
    """Replace what cannot be encoded: lone surrogates, as in names of files."""
    return text.encode("utf-8", "replace").decode()


def _checked(value: object) -> Observation:
    """Check what `step` returned, and replace what cannot be encoded in its text."""
    from lit_rlvr.environments.base import Observation

    if not isinstance(value, Observation):
        raise TypeError(f"step must return an Observation, got {type(value).__name__}")
    for name, kind in (("text", str), ("done", bool), ("calls", int), ("errors", int), ("images", tuple)):
        if not isinstance(getattr(value, name), kind):
            found = type(getattr(value, name)).__name__
            raise TypeError(f"Observation.{name} must be of type {kind.__name__}, got {found}")
    return replace(value, text=_plain(value.text))


def _judged(result: RewardResult) -> RewardResult:
    """Set `correct`: value 1 is right unless the environment says otherwise."""
    if result.correct is not None or result.status == "error":
        return result
    return replace(result, correct=result.value == 1)
