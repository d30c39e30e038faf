"""Followed run folders: re-reads changed files, tells the state of each run, and keeps its prompts' visits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from lit_rlvr.commands.report.groups import RunGroup, read_groups
from lit_rlvr.commands.report.prompts import CompletionsIndex
from lit_rlvr.commands.report.runs import FILES, RunRecord, read_run
from lit_rlvr.common.run_files import LIVE, read_live
from lit_rlvr.common.terminal import printable
from lit_rlvr.errors import UserError

SILENT_SECONDS = 15.0
"""Seconds without a new `live.json` after which a run that has not ended counts as dead."""
READ_SECONDS = 0.05
"""Seconds of reading completions before the server may render pages."""


@dataclass(frozen=True)
class RunStatus:
    """The state of a run.

    Args:
        state: "running", "finished", "stopped", "silent" (killed, or its machine is gone) or "unknown" (an older run).
        line: the status as text.
        step: the last step.
        steps: the steps of the whole run; None = not limited or unknown.
    """

    state: str
    line: str
    step: int
    steps: int | None

    @property
    def share(self) -> float | None:
        """The share of the run that is done, from 0 to 1."""
        if self.steps:
            return min(self.step / self.steps, 1.0)
        return None


class FollowedRun:
    """A run folder that `watch` follows.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.completions = CompletionsIndex(path / "completions.jsonl")
        self.run = RunRecord(path)
        self._stamps: tuple[Any, ...] | None = None  # None before the first refresh

    def refresh(self) -> bool:
        """Re-read changed files, except completions.jsonl; return whether any changed.

        Raises:
            UserError: the folder holds no run.
        """
        stamps = tuple(_stamp(self.path / name) for name in FILES)
        if stamps == self._stamps:
            return False
        self.run = read_run(self.path)
        self._stamps = stamps
        return True

    @property
    def status(self) -> RunStatus:
        """The run's status at this moment."""
        last = max(self.run.metrics, default=0)
        if not self.path.is_dir():
            return RunStatus("silent", "its folder is gone: deleted, renamed or not mounted", last, None)
        live = read_live(self.path)
        silent = time.time() - live["at"] if live else 0.0
        if live and live["stage"] != "ended" and silent < SILENT_SECONDS:
            return RunStatus("running", describe_state(live), live["step"], live["steps"])
        max_steps = self.run.settings.get("trainer.max_steps", "")
        if live:
            steps = live["steps"]
        elif max_steps.isdigit():
            steps = int(max_steps)
        else:
            steps = None
        if self.run.is_finished:
            return RunStatus("finished", f"finished after {last} steps", last, last)
        if self.run.summary:
            return RunStatus("stopped", f"stopped early: {self.run.summary.get('stopped')}", last, steps)
        if live and live["stage"] != "ended":
            return RunStatus(
                "silent",
                f"no sign of life for {format_duration(silent)}, while {live['stage']}: killed, or its machine is gone",
                live["step"],
                live["steps"],
            )
        return RunStatus("unknown", "unfinished, or killed", last, steps)


class FollowedFolders:
    """Folders of runs and studies, and folders that contain runs; later ones are found when they appear.

    Args:
        folders: the folders as the user gave them.

    Raises:
        UserError: a folder is not there, or holds no run.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._given = list(folders)
        self.runs: dict[str, FollowedRun] = {}
        self.title = ""
        self.groups = list[RunGroup]()
        self.versions = {"metrics": 0, "completions": 0}  # numbers that change when these do
        self.lock = Lock()
        self.refresh()

    def refresh(self) -> None:
        """Re-read changed files, except completions.jsonl, of the folders that are still there."""
        changed = False
        runs: dict[str, FollowedRun] = {}
        folders = []
        for folder in self._given:
            if not self.runs or folder.is_dir():
                folders.append(folder)
        if not folders:
            return

        def read(path: Path) -> RunRecord:
            nonlocal changed
            name = printable(str(path))  # it stands in addresses
            followed = runs[name] = self.runs.get(name) or FollowedRun(path)
            changed |= followed.refresh()
            return followed.run

        title, groups = read_groups([run for folder in folders for run in find_runs(folder)], read)
        if changed or title != self.title or list(runs) != list(self.runs):
            with self.lock:
                self.title = title
                self.groups = groups
                self.runs = runs
                self.versions["metrics"] += 1

    def read_completions(self) -> None:
        """Read the new lines of every completions.jsonl.

        It reads small pieces, so that the server can render pages in between.
        """
        for run in list(self.runs.values()):
            done = False
            while not done:
                with self.lock:
                    before = run.completions.read
                    done = run.completions.follow(READ_SECONDS)
                    if run.completions.read != before:
                        self.versions["completions"] += 1
                if not done:
                    time.sleep(READ_SECONDS / 10)

    @property
    def unread(self) -> float:
        """The share of all completions that is not read yet."""
        size = sum(run.completions.size for run in self.runs.values())
        if size:
            return 1 - sum(run.completions.read for run in self.runs.values()) / size
        return 0.0


def find_runs(folder: Path) -> list[Path]:
    """Return the folder itself if it holds a run or a study, else those up to two levels below that do.

    Raises:
        UserError: there are none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give one that `lit-rlvr fit` or `compare` has begun")
    if _holds_run(folder):
        return [folder]
    below = []
    for pattern in ("*", "*/*"):
        for path in sorted(folder.glob(pattern)):
            if _holds_run(path):
                below.append(path)
    studies = set()
    for path in below:
        if (path / "study.json").is_file():
            studies.add(path)
    folders = []
    for path in below:
        if not studies & {*path.parents}:
            folders.append(path)
    if not folders:
        raise UserError(
            f"{folder} holds no run (config.yaml, metrics.csv, summary.json); give a folder that `lit-rlvr fit` or "
            "`lit-rlvr compare` writes"
        )
    return folders


def _holds_run(path: Path) -> bool:
    if any((path / name).is_file() for name in ("metrics.csv", "summary.json", "study.json")):
        return True
    return (path / "config.yaml").is_file() and (path / LIVE).is_file()


def describe_state(live: dict[str, Any]) -> str:
    """Describe a live run in one line: step, stage, speed, what it waits for, the time left, memory and engine."""
    steps = "" if live["steps"] is None else f" of {live['steps']}"
    stage = live["stage"] + (f" {live['done']}/{live['total']}" if live["total"] else "")
    waiting = []
    for name, seconds in live["waiting"].items():
        waiting.append(f"waiting for {name} {format_duration(seconds)}")
    words = [
        f"step {live['step']}{steps}",
        f"{live['part']}: {stage}" if live["part"] else stage,
        f"{live['tokens_per_second']:,.0f} tokens/s" if live["tokens_per_second"] else "",
        *waiting,
        "" if live["seconds_left"] is None else f"{format_duration(live['seconds_left'])} left",
        f"{live['memory_mb'] / 1024:.1f} GiB at most",
        f"engine {live['engine']}",
    ]
    return ", ".join(filter(None, words))


def format_duration(seconds: float) -> str:
    """Return a duration as 42 s, 12 min or 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
