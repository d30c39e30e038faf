"""A hidden number to guess from hints: a toy task with state, which tiny models can learn."""

from __future__ import annotations

import re
from typing import Any

from lit_rlvr.environments.base import Environment, Observation
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample, Turn


class GuessNumber(Environment):
    """A hidden number, the sample's answer, which the model guesses; `higher` or `lower` answers each guess.

    The reward is 1 if the model finds the number within `rollout.sampling.max_turns` turns, else 0.

    Args:
        kwargs: `limits` of every environment.
    """

    needs_turns = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden, self.found = 0, False

    def reset(self, sample: Sample) -> None:
        try:
            self.hidden = int(sample.answer)
        except ValueError as error:
            raise UserError(f"{sample.source or sample.id}: GuessNumber needs whole numbers as answers") from error

    def step(self, turn: Turn) -> Observation:
        numbers = re.findall(r"-?\d+", turn.text)
        if not numbers:
            return Observation("Guess a whole number.", errors=1)
        guess = numbers[-1][:20]
        self.found = int(guess) == self.hidden
        return Observation("higher" if int(guess) < self.hidden else "lower", done=self.found)

    def reward(self) -> bool:
        return self.found
