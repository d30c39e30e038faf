"""Keeps every tracker a copy of metrics.csv, even if the run or the tracker fails in between."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.packages import find_part, require
from lit_rlvr.common.terminal import one_line
from lit_rlvr.errors import RunStopped, UserError, check_within, first_line
from lit_rlvr.run.loggers import callback_of, metric_rows, run_root
from lit_rlvr.run.outputs import RunFolder
from lit_rlvr.run.trackers.base import Samples, TrackedRun, Tracker
from lit_rlvr.run.trackers.mlflow_tracker import MLflow
from lit_rlvr.run.trackers.tensorboard_tracker import TensorBoard
from lit_rlvr.run.trackers.trackio_tracker import Trackio
from lit_rlvr.run.trackers.wandb_tracker import Wandb

Chosen = list[Tracker | str] | Tracker | str | None
"""Type of the option `trackers`: names and class_paths, one or several."""

TRACKER_NAMES: dict[str, type[Tracker]] = {cls.key: cls for cls in (Wandb, MLflow, Trackio, TensorBoard)}


def choose_trackers(chosen: Chosen, board: bool) -> list[Tracker]:
    """Build the trackers.

    Args:
        board: whether the run writes to TensorBoard, which then needs no naming.

    Raises:
        UserError: one is unknown or given twice, has a wrong option, or needs a package that is not installed.
    """
    given: Sequence[Tracker | str] = [] if chosen is None else chosen if isinstance(chosen, list) else [chosen]
    found = [_named(one) if isinstance(one, str) else one for one in given]
    if board and not any(isinstance(tracker, TensorBoard) for tracker in found):
        found.append(TensorBoard())
    keys = [tracker.key for tracker in found]
    for tracker in found:
        if keys.count(tracker.key) > 1:
            raise UserError(f"trackers: {tracker.key} is given twice")
        check_within("[0, inf)", f"trackers.{tracker.key}", samples_every=tracker.samples_every)
        if tracker.module:
            require(tracker.module, "trackers", *tracker.packages)
    return found


def _named(name: str) -> Tracker:
    cls = TRACKER_NAMES.get(name) or find_part("trackers", "trackers", name, TRACKER_NAMES, Tracker)
    return cls()


TRACKERS_FOLDER = "trackers"
"""Subfolder of the run folder for the trackers' files and `runs.json`, which holds each tracker's run id and last
step."""
PAUSE = 60.0
"""Seconds before a tracker that failed is tried again; they double each time, up to `LONGEST_PAUSE`."""
LONGEST_PAUSE = 3600.0

_log = logging.getLogger("lit_rlvr")


class Trackers(Callback):
    """Sends each row of metrics.csv to every tracker when the next iteration begins, because it is complete then.

    A tracker gets the rows after the last step it has. So a resumed run sends nothing twice, and sends what an earlier
    process could not send. A tracker that fails does not end the run: it is tried again after a pause that doubles each
    time, and then gets the missing rows. A tracker that the user adds to a resumed run gets the run from its beginning.
    Lightning's loggers alone promise none of this: they send each value once, when it is logged.

    Args:
        trackers: at most one of each kind; only the first process uses them.
        settings: the resolved settings of the run as YAML.
    """

    def __init__(self, trackers: Sequence[Tracker], settings: str) -> None:
        self.feeds = [Feed(tracker) for tracker in trackers]
        self.settings = settings
        self._earlier = ""  # summary.json as an earlier process left it

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self._earlier = _text(run_root(trainer) / "summary.json")

    def begin(self, trainer: Trainer) -> None:
        """Start or continue every tracker's run.

        Raises:
            UserError: a tracker fails.
        """
        if trainer.is_global_zero and not any(feed.started for feed in self.feeds):
            for feed in self.feeds:
                feed.start(trainer, self.settings)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for feed in self.feeds:
            if feed.started and feed.last > trainer.global_step:
                again = f"{trainer.global_step + 1} to {feed.last}"
                _log.warning("trackers: %s has steps %s from before and keeps them", feed.tracker.key, again)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        rows = metric_rows(trainer)
        for feed in self.feeds:
            feed.send(rows)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rows = callback_of(trainer, RunFolder).rows
        if not trainer.is_global_zero or not rows:
            return
        for feed in self.feeds:
            every = feed.tracker.samples_every
            if every and (pl_module.iteration == 1 or pl_module.iteration % every == 0):
                feed.samples[trainer.global_step] = Samples.of(rows, run_root(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if callback_of(trainer, RunFolder).has_started:  # it may have completed a stopped run
            self.begin(trainer)
        self._end(trainer, failed=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # If the run stopped during validation, the resumed run sends this iteration's row.
        self._end(trainer, not isinstance(exception, RunStopped | KeyboardInterrupt), complete=not trainer.validating)

    def _end(self, trainer: Trainer, failed: bool, complete: bool = True) -> None:
        if not trainer.is_global_zero:
            return
        rows = metric_rows(trainer)
        if rows and not complete:
            rows = {step: row for step, row in rows.items() if step < max(rows)}
        written, curves = _text(run_root(trainer) / "summary.json"), run_root(trainer) / "curves.png"
        summary = json.loads(written) if written and written != self._earlier else {}
        for feed in self.feeds:
            feed.end(rows, summary, curves if summary and curves.is_file() else None, failed)


class Feed:
    """One tracker with the rows that it has and those that it still needs."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.samples: dict[int, Samples] = {}  # by step: those still to be sent
        self.last = -1
        self.started = False
        self._id = ""
        self._file = Path()
        self._failures = 0
        self._try_at = 0.0

    def start(self, trainer: Trainer, settings: str) -> None:
        """Start the tracker's run, or continue the one that runs.json names.

        Raises:
            UserError: the tracker fails.
        """
        root, key = run_root(trainer), self.tracker.key
        self._file = root / TRACKERS_FOLDER / "runs.json"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        known = _read_run_ids(self._file).get(key, {})
        if known and known["place"] != self.tracker.place:
            _log.warning("trackers: %s now goes to %s, as a new run", key, self.tracker.place or "its default place")
            known = {}
        run = TrackedRun(
            name=self.tracker.name or run_name(root),
            folder=self._file.parent,
            config=yaml.safe_load(settings),
            config_file=settings,
            loggers=trainer.loggers,
            id=known.get("id"),
            last_step=known.get("last_step", -1),
        )
        try:
            self._id, self.last = self.tracker.start(run)
        except UserError:
            raise
        except Exception as error:
            what = one_line(first_line(error))
            raise UserError(f"trackers: {key} does not start: {what}; mend it, or leave {key} out") from error
        self.started = True
        self._save()

    def send(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Send all rows that the tracker does not have yet; skip a tracker that failed recently."""
        if not self.started or time.monotonic() < self._try_at:
            return
        try:
            for step in sorted(step for step in rows if step > self.last):
                self.tracker.log(step, rows[step], self.samples.get(step))
                self.last = step
                self._save()
        except Exception as error:
            self._fails(error)
        else:
            if self._failures:
                _log.info("trackers: %s works again and has everything", self.tracker.key)
            self._failures, self.samples = 0, {}

    def end(
        self, rows: Mapping[int, Mapping[str, float]], summary: Mapping[str, Any], curves: Path | None, failed: bool
    ) -> None:
        """Send the remaining rows and the results, and end the tracker's run."""
        if not self.started:
            return
        self._try_at = 0.0
        self.send(rows)
        self.started = False
        try:
            self.tracker.end(summary, curves, failed)
        except Exception as error:
            self._fails(error)

    def _fails(self, error: Exception) -> None:
        """Log the first failure, and double the pause before the next attempt."""
        if not self._failures:
            _log.warning(
                "trackers: %s fails after step %d: %s; the run goes on, and sends what is missing when %s works again, "
                "or when it is resumed",
                self.tracker.key, self.last, one_line(first_line(error)), self.tracker.key,
            )  # fmt: skip
        self._try_at = time.monotonic() + min(PAUSE * 2**self._failures, LONGEST_PAUSE)
        self._failures += 1

    def _save(self) -> None:
        known = _read_run_ids(self._file)
        known[self.tracker.key] = {"id": self._id, "place": self.tracker.place, "last_step": self.last}
        write_atomically(self._file, json.dumps(known, indent=2) + "\n")


def run_name(root: Path) -> str:
    """Return a run's name for trackers: the path of its folder without a leading `runs/`; outside the current directory
    only the last part."""
    root, here = root.resolve(), Path.cwd()
    parts = root.relative_to(here).parts if root.is_relative_to(here) else ()
    return "/".join(parts[1:] if len(parts) > 1 and parts[0] == "runs" else parts) or root.name


def _read_run_ids(path: Path) -> dict[str, Any]:
    """Return the trackers' runs by key; empty without a `runs.json`."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
