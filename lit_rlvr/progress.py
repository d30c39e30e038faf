"""What this process is doing now: noted where it happens, and shown by whoever follows the run (`run/live.py`)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Doing:
    """The stage of a run, and how far it is. Notes only: no result depends on them.

    Args:
        stage: what is going on, such as "generating".
        part: what it is part of, such as "validation sums"; "" = training.
        since: when the stage began, in seconds since 1970.
        done: how much of `total` is done; a total of 0 = not counted.
        tokens: generated since the stage began.
        waiting: what holds the stage up, such as a reward, and since when.
    """

    stage: str = "starting"
    part: str = ""
    since: float = field(default_factory=time.time)
    done: int = 0
    total: int = 0
    tokens: int = 0
    waiting: dict[str, float] = field(default_factory=dict)

    def begin(self, stage: str, total: int = 0) -> None:
        """The next stage begins."""
        self.stage, self.since, self.total, self.done, self.tokens = stage, time.time(), total, 0, 0

    def advance(self, done: int = 1, tokens: int = 0) -> None:
        """Some more of the stage is done."""
        self.done += done
        self.tokens += tokens


progress = Doing()
"""Of this process."""
