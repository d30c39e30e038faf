"""Keeps every tracker a copy of metrics.csv, even if the run or the tracker fails in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import find_part, require
from lit_rlvr.common.terminal import one_line
from lit_rlvr.errors import RunStopped, UserError, first_line
from lit_rlvr.run.loggers import callback_of, metric_rows, run_root
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.trackers.base import Samples, TrackedRun, Tracker
from lit_rlvr.run.trackers.services import MLflow, Trackio, Wandb

Chosen = list[Tracker | str] | Tracker | str | None
"""Type of the option `trackers`: names and class_paths, one or several."""

TRACKER_NAMES: dict[str, type[Tracker]] = {cls.key: cls for cls in (Wandb, MLflow, Trackio)}


def choose_trackers(chosen: Chosen) -> list[Tracker]:
    """Build the trackers.

    Raises:
        UserError: one is unknown, has a wrong option, or needs a package that is not installed.
    """
    if chosen is None:
        entries: Sequence[Tracker | str] = []
    elif isinstance(chosen, list):
        entries = chosen
    else:
        entries = [chosen]
    trackers = []
    for entry in entries:
        if isinstance(entry, Tracker):
            trackers.append(entry)
        else:
            trackers.append(
                (TRACKER_NAMES.get(entry) or find_part("trackers", "trackers", entry, TRACKER_NAMES, Tracker))()
            )
    for tracker in trackers:
        if tracker.module:
            require(tracker.module, "trackers", *tracker.packages)
    return trackers


class Trackers(Callback):
    """The trackers of a run.

    Each row of metrics.csv goes to every tracker when the next iteration begins, because it is complete then. A tracker
    gets the rows after the last step it has. So a resumed run sends nothing twice, and sends what an earlier process
    could not send. A tracker that fails does not end the run: it gets the missing rows at the run's end, or when that
    is resumed. A tracker that the user adds to a resumed run gets the run from its beginning.

    Args:
        trackers: at most one of each kind; only the first process uses them.
        settings: the resolved settings of the run as YAML.
    """

    def __init__(self, trackers: Sequence[Tracker], settings: str) -> None:
        self.trackers = trackers
        self.settings = settings
        self.feeds: list[Feed] = []  # of the trackers that have started

    def begin(self, trainer: Trainer) -> None:
        """Start or continue every tracker's run.

        Raises:
            UserError: a tracker fails.
        """
        if trainer.is_global_zero and not self.feeds:
            for tracker in self.trackers:
                self.feeds.append(Feed(tracker, trainer, self.settings))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for feed in self.feeds:
            if not feed.has_failed:
                feed.attempt(feed.send, metric_rows(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rows = callback_of(trainer, RunFolder).rows
        for feed in self.feeds:
            every = feed.tracker.samples_every
            if rows and every and (pl_module.iteration == 1 or pl_module.iteration % every == 0):
                feed.samples[trainer.global_step] = Samples.of(rows)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if callback_of(trainer, RunFolder).has_started:  # it may have completed a stopped run
            self.begin(trainer)
        self._end(trainer, metric_rows(trainer), failed=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        rows = metric_rows(trainer)
        if trainer.validating:  # the resumed run sends this iteration's row
            rows = {step: row for step, row in rows.items() if step < max(rows)}
        self._end(trainer, rows, not isinstance(exception, RunStopped | KeyboardInterrupt))

    def _end(self, trainer: Trainer, rows: Mapping[int, Mapping[str, float]], failed: bool) -> None:
        for feed in self.feeds:
            feed.attempt(feed.send, rows)
            feed.attempt(feed.tracker.end, failed)
        self.feeds = []


class Feed:
    """One tracker with the rows that it has and those that it still needs; it starts or continues the tracker's run.

    `trackers/runs.json` in the run folder holds each tracker's run id and last step.

    Args:
        tracker: the tracker.
        trainer: the run's trainer.
        settings: the run's settings as YAML.

    Raises:
        UserError: the tracker fails.
    """

    def __init__(self, tracker: Tracker, trainer: Trainer, settings: str) -> None:
        self.tracker = tracker
        self.has_failed = False
        self.samples: dict[int, Samples] = {}  # by step: those still to be sent
        self._file = run_root(trainer) / "trackers" / "runs.json"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        known = self._known().get(tracker.key, {})
        try:
            self._id, self.last = tracker.start(
                TrackedRun(
                    tracker.name or run_name(run_root(trainer)),
                    self._file.parent,
                    yaml.safe_load(settings),
                    known.get("id"),
                    known.get("last_step", -1),
                )
            )
        except Exception as error:
            if not any(self._file.parent.iterdir()):
                self._file.parent.rmdir()
            raise UserError(
                f"trackers: {tracker.key} does not start: {one_line(first_line(error))}; mend it, or leave it out"
            ) from error
        self._save()

    def send(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Send all rows that the tracker does not have yet."""
        for step in sorted(step for step in rows if step > self.last):
            self.tracker.log(step, rows[step], self.samples.get(step))
            self.last = step
            self._save()
        self.samples = {}

    def attempt(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call the tracker; make its first error a warning, and ignore later ones."""
        try:
            call(*arguments)
        except Exception as error:
            if not self.has_failed:
                log.warning(
                    "trackers: %s fails after step %d: %s; the run goes on, and sends what is missing at its end, or "
                    "when it is resumed",
                    self.tracker.key,
                    self.last,
                    one_line(first_line(error)),
                )
            self.has_failed = True

    def _known(self) -> dict[str, Any]:
        """Return the trackers' runs by key; empty without a `runs.json`."""
        if self._file.is_file():
            return dict(json.loads(self._file.read_text()))
        return {}

    def _save(self) -> None:
        known = self._known() | {self.tracker.key: {"id": self._id, "last_step": self.last}}
        write_atomically(self._file, json.dumps(known, indent=2) + "\n")


def run_name(root: Path) -> str:
    """Return a run's name for trackers: the path of its folder without a leading `runs/`.

    Outside the current directory, it is only the last part.
    """
    root = root.resolve()
    folder = Path.cwd()
    if root.is_relative_to(folder):
        parts = root.relative_to(folder).parts
    else:
        parts = ()
    return "/".join(parts[1:] if len(parts) > 1 and parts[0] == "runs" else parts) or root.name
