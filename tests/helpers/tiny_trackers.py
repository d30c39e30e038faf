"""Trackers that write down what they are given, and fail when told to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lit_rlvr.run.trackers import TrackedRun, Tracker
from lit_rlvr.run.trackers.base import Samples


class Notes(Tracker):
    """Writes `notes.jsonl`.

    Args:
        fails: steps at which it fails once.
    """

    key = "notes"

    def __init__(self, fails: list[int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fails = fails or []

    def start(self, run: TrackedRun) -> tuple[str, int]:
        self._file = run.folder / "notes.jsonl"
        self._note(started=run.id)
        return run.id or "note-1", run.last_step

    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        self._note(asked=step)
        if step in self.fails:
            self.fails.remove(step)
            raise OSError("no space left")
        self._note(step=step, metrics=dict(metrics), samples=samples and len(samples.rows))

    def end(self, failed: bool) -> None:
        self._note(failed=failed)

    def _note(self, **what: Any) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(what) + "\n")


class Missing(Notes):
    """Needs a package that does not exist."""

    key, module = "missing", "not_there"
