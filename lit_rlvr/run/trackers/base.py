"""The interface of a tracker, and sampled completions as a table of plain values."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.loggers import Logger

from lit_rlvr.common.run_files import thumbnail_path

SAMPLE_COLUMNS = ("step", "id", "sample", "prompt", "answer", "completion", "reward", "correct", "advantage",
           "finish_reason", "tokens", "status")  # fmt: skip
"""Columns of completions.jsonl that every table has; `turns` and `images` follow if any row has them."""


@dataclass(frozen=True)
class Samples:
    """The records of one iteration.

    Args:
        columns: names of the table's columns.
        rows: a value for each column: a number, a truth value, a text or None.
        pictures: for each row, the thumbnails of its prompt's images.
    """

    columns: tuple[str, ...]
    rows: list[list[Any]]
    pictures: list[list[Path]]

    @staticmethod
    def of(records: Sequence[dict[str, Any]], run: Path) -> Samples:
        """Build the table from records of completions.jsonl in a run folder."""
        more = tuple(name for name in ("turns", "images") if any(name in record for record in records))
        columns = SAMPLE_COLUMNS + more
        rows = [[_plain(record.get(name)) for name in columns] for record in records]
        pictures = [[thumbnail_path(run, key) for key in record.get("images", ())] for record in records]
        return Samples(columns, rows, pictures)

    def with_pictures(self, cell: Callable[[list[Path]], Any]) -> tuple[list[str], list[list[Any]]]:
        """Return (columns, rows), with a column `picture` if any row has one.

        Args:
            cell: makes a cell of the pictures of a row.
        """
        if not self.shown:
            return list(self.columns), self.rows
        rows = [[*row, cell(paths)] for row, paths in zip(self.rows, self.pictures, strict=True)]
        return [*self.columns, "picture"], rows

    @property
    def shown(self) -> dict[Path, str]:
        """Each different picture and the id of the first prompt that has it."""
        ids = [str(row[self.columns.index("id")]) for row in self.rows]
        found: dict[Path, str] = {}
        for name, paths in zip(ids, self.pictures, strict=True):
            for path in paths:
                found.setdefault(path, name)
        return found


def _plain(value: Any) -> Any:
    """Return a value for a table: a chat's messages as `role: content`, other lists as JSON."""
    items = value if isinstance(value, list) else []
    if items and all(isinstance(item, dict) and {"role", "content"} <= set(item) for item in items):
        return "\n".join(f"{item['role']}: {_text(item['content'])}" for item in items)
    return value if value is None or isinstance(value, str | int | float) else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class TrackedRun:
    """The facts about a run that a tracker gets at its start.

    Args:
        name: the run's name.
        folder: where the tracker may keep files; below the run folder.
        config: the resolved settings.
        config_file: the same as YAML text.
        loggers: the trainer's.
        id: the tracker's id of this run when it was started before; None = a new run.
        last_step: the last step that was sent before; -1 = none.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    config_file: str
    loggers: Sequence[Logger]
    id: str | None = None
    last_step: int = -1


class Tracker(ABC):
    """Sends the metrics and samples of a run to one tracker; only rank 0 has one.

    Any method may raise an exception of the tracker's package: `Trackers` makes it an error at the start, and a warning
    later.

    Args:
        name: the run's name; by default the path of its folder, without a leading `runs/`.
        samples_every: iterations between tables of samples with their pictures; 0 = never.
    """

    key: ClassVar[str]
    """Name of the tracker in `trackers` and in messages, and of the extra that installs it."""
    module: ClassVar[str] = ""
    """The module that the tracker imports; "" = none but ours."""
    packages: ClassVar[tuple[str, ...]] = ()
    """The packages that provide the module, if their names differ from it."""

    def __init__(self, name: str | None = None, samples_every: int = 10) -> None:
        self.name, self.samples_every = name, samples_every

    @property
    def place(self) -> str:
        """The server or project that stores the run. A run that resumes with another one starts there as a new run."""
        return ""

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
    def end(self, summary: Mapping[str, Any], curves: Path | None, failed: bool) -> None:
        """Send the results, and wait until the tracker has written everything.

        Args:
            summary: what summary.json says; empty if the run ended without one.
            curves: the picture of the run's curves, if there is one.
            failed: whether the run ended with an error.
        """


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a summary as metrics `summary/<name>`."""
    return {f"summary/{k}": float(v) for k, v in summary.items() if isinstance(v, int | float)}
