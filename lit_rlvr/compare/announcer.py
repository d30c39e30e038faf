"""Announces which cell is running, how many there are, and the time left."""

from __future__ import annotations

import sys
import time

from lit_rlvr.compare.study import Cell
from lit_rlvr.printable import printable


class Announcer:
    """One line on stderr when a cell starts, and one when it ends.

    Args:
        total: number of cells in the study.
        done: number of cells already done.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self._ended = total, done, 0
        self._began = time.monotonic()
        self._places: dict[Cell, tuple[int, float]] = {}  # its number and start time
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
        print(printable(text), file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
