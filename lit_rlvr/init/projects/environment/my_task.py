"""An environment, which answers the model between its turns, and questions for it. `config.yaml` names both."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.base import Split
from lit_rlvr.environments import Environment, Observation
from lit_rlvr.types import Sample, Turn


class Drawers(PromptDataModule):
    """Drawers with a number in each, which nobody can know without looking."""

    def rows(self, split: Split) -> Iterator[Sample]:
        """`solution` is what the warm start teaches: the model's turns of an episode."""
        places = {"train": range(128, 1000), "validation": range(128), "test": range(0)}[split]
        for place in places:
            number = str(random.Random(place).randrange(100, 1000))
            yield Sample(f"drawer {place}", f"drawer {place}:", number, row={"solution": ["?", number]})


class Drawer(Environment):
    """`?` opens the drawer and shows the number in it; any other turn is the answer and ends the episode."""

    needs_turns = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = self.said = ""

    def reset(self, sample: Sample) -> None:
        self.number = sample.answer

    def step(self, turn: Turn) -> Observation:
        self.said = turn.text.strip()
        return Observation(self.number) if self.said == "?" else Observation(done=True)

    def reward(self) -> bool:
        return self.said == self.number
