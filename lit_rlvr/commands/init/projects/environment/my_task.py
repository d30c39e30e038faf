"""An environment, which answers the model between its turns, and questions for it. `config.yaml` names both."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from lit_rlvr import Environment, Observation, PromptDataModule, Sample, Split, Turn


class Drawers(PromptDataModule):
    """Drawers with a hidden number in each."""

    def rows(self, split: Split) -> Iterator[Sample]:
        """Yield drawers; `solution`, the target of the warm start, lists the model's turns of an episode."""
        numbers = {"train": range(128, 1000), "validation": range(128), "test": range(0)}[split]
        for n in numbers:
            content = str(random.Random(n).randrange(100, 1000))
            yield Sample(f"drawer {n}", f"drawer {n}:", content, row={"solution": ["?", content]})


class Drawer(Environment):
    """`?` opens the drawer and shows the number in it; any other turn is the answer and ends the episode."""

    needs_turns = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = self.answer = ""

    def reset(self, sample: Sample) -> None:
        self.number = sample.answer

    def step(self, turn: Turn) -> Observation:
        self.answer = turn.text.strip()
        if self.answer == "?":
            return Observation(self.number)
        return Observation(done=True)

    def reward(self) -> bool:
        return self.answer == self.number
