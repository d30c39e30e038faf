"""The interface of a tracker, and sampled completions as rows of plain values."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Samples:
    """A table with a row for each completion of an iteration.

    Args:
        columns: the names in records of completions.jsonl.
        rows: a value for each column: a number, a truth value, a text or None.
    """

    columns: list[str]
    rows: list[list[Any]]

    @staticmethod
    def of(records: Sequence[Mapping[str, Any]]) -> Samples:
        """Build the table from records of completions.jsonl; lists, such as the messages of a chat, become JSON."""
        columns = list(dict.fromkeys(chain.from_iterable(records)))
        rows = []
        for record in records:
            rows.append([_plain(record.get(name)) for name in columns])
        return Samples(columns, rows)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class TrackedRun:
    """The facts about a run that a tracker gets at its start.

    Args:
        name: the run's name.
        folder: where the tracker may keep files; below the run folder.
        config: the resolved settings.
        id: the tracker's id of this run when it was started before; None = a new run.
        last_step: the last step that was sent before; -1 = none.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    id: str | None = None
    last_step: int = -1


class Tracker(ABC):
    """A sender of the metrics and samples of a run to one tracker; only rank 0 has one.

    Any method may raise an exception of the tracker's package: `Trackers` makes it an error at the start, and a warning
    later.

    Args:
        name: the run's name; by default the path of its folder, without a leading `runs/`.
        samples_every: iterations between tables of samples; 0 = never.

    Attributes:
        key: name of the tracker in `trackers` and in messages, and of the extra that installs it.
        module: the module that the tracker imports; "" = none but ours.
        packages: the packages that provide the module, if their names differ from it.
    """

    key: ClassVar[str]
    module: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str | None = None, samples_every: int = 10) -> None:
        self.name = name
        self.samples_every = samples_every

    @abstractmethod
    def start(self, run: TrackedRun) -> tuple[str, int]:
        """Create or continue the run.

        Returns:
            The tracker's id of the run, and the last step that the tracker has; -1 = none.
        """

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        """Send all metrics of one optimizer step, and the samples of its iteration; steps only increase."""

    @abstractmethod
    def end(self, failed: bool) -> None:
        """Wait until the tracker has written everything.

        Args:
            failed: whether the run ended with an error.
        """
