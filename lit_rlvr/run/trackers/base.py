"""The interface of a tracker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.loggers import Logger

from lit_rlvr.run.trackers.samples import Samples


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told about the run when it starts.

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
    """Sends a run's metrics and samples to one tracker. Only the first process has one.

    Any method may raise what the tracker's package raises: `Trackers` turns it into an error at the start, and into a
    warning later.

    Args:
        name: the run's name; by default the path of its folder, without a leading `runs/`.
        samples_every: iterations between tables of samples with their pictures; 0 = never.
    """

    key: ClassVar[str]
    """Its name in `trackers`, in messages, and the extra that installs it."""
    module: ClassVar[str] = ""
    """The module that it needs; "" = none besides ours."""
    packages: ClassVar[tuple[str, ...]] = ()
    """The packages that provide it, if they are named otherwise."""

    def __init__(self, name: str | None = None, samples_every: int = 10) -> None:
        self.name, self.samples_every = name, samples_every

    @property
    def place(self) -> str:
        """Where the run is kept, besides its id; a resumed run that is sent elsewhere is a new run there."""
        return ""

    @abstractmethod
    def start(self, run: TrackedRun) -> tuple[str, int]:
        """Create or continue the run.

        Returns:
            The tracker's id of the run, and the last step that the tracker has; -1 = none.
        """

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float], samples: Samples | None) -> None:
        """Send all metrics of one optimizer step, and the samples of its iteration. Steps only ever rise."""

    @abstractmethod
    def end(self, summary: Mapping[str, Any], curves: Path | None, failed: bool) -> None:
        """Send the results, and wait until everything has been written.

        Args:
            summary: what summary.json says; empty if the run ended without one.
            curves: the picture of the run's curves, if there is one.
            failed: whether the run ended with an error.
        """


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary, as metrics `summary/<name>`."""
    return {f"summary/{k}": float(v) for k, v in summary.items() if isinstance(v, int | float)}
