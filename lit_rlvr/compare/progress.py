"""Which cell of how many, and the time that is left."""

from __future__ import annotations

import sys
import time

from lit_rlvr.compare.study import Cell


class Progress:
    """One line on stderr when a cell starts, and one when it ends.

    Args:
        total: cells of the study.
        done: how many of them need not be run.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self._ended = total, done, 0
        self._began = time.monotonic()
        self._places: dict[Cell, tuple[int, float]] = {}  # which one it is, and when it started
        if done:
            self._say(f"{done} of {total} cells are done already")

    def started(self, cell: Cell) -> None:
        place = self.done + len(self._places) + 1
        self._places[cell] = (place, time.monotonic())
        self._say(f"cell {place} of {self.total}: {cell}")

    def ended(self, cell: Cell, error: str | None) -> None:
        self._ended += 1
        place, started = self._places[cell]
        now = time.monotonic()
        left = (now - self._began) / self._ended * (self.total - self.done - self._ended)
        outcome = f"failed: {error}" if error else "done"
        self._say(f"cell {place} of {self.total}: {outcome} ({now - started:.0f} s); {_minutes(left)} left")

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
