"""The interface of a tracker, and sampled completions as a table of plain values."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
        pictures: the thumbnail of each different image of the prompts -> the id of the first prompt that has it.
    """

    columns: tuple[str, ...]
    rows: list[list[Any]]
    pictures: Mapping[Path, str]

    @staticmethod
    def of(records: Sequence[dict[str, Any]], run: Path) -> Samples:
        """Build the table from records of completions.jsonl in a run folder."""
        columns = SAMPLE_COLUMNS + tuple(n for n in ("turns", "images") if any(n in record for record in records))
        pictures: dict[Path, str] = {}
        for record in records:
            for key in record.get("images", ()):
                pictures.setdefault(thumbnail_path(run, key), str(record["id"]))
        return Samples(columns, [[_plain(record.get(name)) for name in columns] for record in records], pictures)


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
    def end(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Send the results, and wait until the tracker has written everything.

        Args:
            summary: what summary.json says; empty if the run ended without one.
            failed: whether the run ended with an error.
        """


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a summary as metrics `summary/<name>`."""
    return {f"summary/{k}": float(v) for k, v in summary.items() if isinstance(v, int | float)}
