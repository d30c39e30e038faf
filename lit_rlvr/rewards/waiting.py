"""Logs which reward scoring is waiting for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from lit_rlvr.doing import DOING

_log = logging.getLogger("lit_rlvr")

PATIENCE = 30.0
"""Seconds before a slow reward is first logged, and between later log lines."""


class Waiting:
    """Logs, every `PATIENCE` seconds, a reward that is still judging the same completion.

    Args:
        reward: its name in messages.
        rows: the row that each completion of the batch answers.
    """

    def __init__(self, reward: str, rows: Sequence[str]) -> None:
        self._reward, self._rows = reward, rows
        self._begun: dict[int, float] = {}  # the completions being judged -> since when
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lit-rlvr-waiting", daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._over.set()
        DOING.waiting.pop(self._reward, None)

    def begin(self, number: int) -> None:
        """Record that the reward starts to judge completion `number` of the batch."""
        self._begun[number] = time.monotonic()
        DOING.waiting.setdefault(self._reward, time.time())

    def end(self, number: int) -> None:
        """Record that it is judged, or given up for now."""
        self._begun.pop(number, None)
        if not self._begun:
            DOING.waiting.pop(self._reward, None)

    def _watch(self) -> None:
        said: dict[tuple[int, float], int] = {}
        while not self._over.wait(PATIENCE / 10):
            for number, since in list(self._begun.items()):
                times = int((time.monotonic() - since) / PATIENCE)
                if times > said.get((number, since), 0):
                    said[number, since] = times
                    _log.warning("waiting for %s, %g s (row %s)", self._reward, times * PATIENCE, self._rows[number])
