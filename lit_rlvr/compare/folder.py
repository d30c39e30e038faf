"""A study's folder: what it was begun with, how far each cell is, and that only one process works in it."""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_rlvr.compare.study import Cell, Study
from lit_rlvr.errors import UserError
from lit_rlvr.run.complete import is_complete
from lit_rlvr.run.files import write_atomically

_log = logging.getLogger("lit_rlvr")
Status = Literal["pending", "running", "done", "failed", "interrupted"]
CONFIG = "cell.yaml"
"""What a cell was given, in its run folder: a config of `fit`."""


@dataclass
class State:
    """How far a cell is.

    Args:
        error: one line of a failed cell.
    """

    cell: Cell
    status: Status = "pending"
    error: str | None = None


class StudyFolder:
    """`study.json` and the cells' run folders.

    Args:
        root: is made if need be.

    Raises:
        UserError: the folder holds another study, or another form of this one, or cannot be written.
    """

    def __init__(self, root: Path, study: Study) -> None:
        self.root, self.study = root, study
        _check(root, study)
        self.states = {cell.folder: State(cell) for cell in study.cells}
        for state in self.states.values():
            path = root / state.cell.folder / CONFIG
            write_atomically(path, yaml.safe_dump(state.cell.config, sort_keys=False))
            if is_complete(path.parent):
                state.status = "done"
        self._write()

    def note(self, cell: Cell, status: Status, error: str | None = None) -> None:
        """Record how far a cell is."""
        state = self.states[cell.folder]
        state.status, state.error = status, error
        self._write()

    def having(self, *statuses: Status) -> list[State]:
        return [state for state in self.states.values() if state.status in statuses]

    def _write(self) -> None:
        cells = [
            {
                "name": state.cell.name,
                "task": state.cell.task,
                "seed": state.cell.seed,
                "run": str(state.cell.folder),
                "status": state.status,
                "error": state.error,
            }
            for state in self.states.values()
        ]
        told = {"name": self.study.name, "baseline": self.study.baseline, "cells": cells}
        write_atomically(self.root / "study.json", json.dumps(told, indent=2) + "\n")


@contextmanager
def locked(root: Path) -> Iterator[int]:
    """Work in a study's folder alone: wait for another process that does, or for a cell that a killed one left.

    Yields:
        The lock's descriptor; a process that inherits it holds the lock as well.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--out: {root} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("%s: another comparison, or a cell that it left, is at work here; waiting for its end", root)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def has_begun(run: Path) -> bool:
    """Whether a run folder holds anything that a run left."""
    return any((run / name).exists() for name in ("metrics.csv", "checkpoints", "summary.json"))


def _check(root: Path, study: Study) -> None:
    """Refuse a folder whose runs are not those of this study; more seeds, tasks and cells are welcome."""
    told = root / "study.json"
    if told.is_file():
        before = json.loads(told.read_text())
        if before["name"] != study.name:
            raise UserError(f"--out: {root} holds the study {before['name']!r}, not {study.name!r}; choose another")
        gone = {cell["run"] for cell in before["cells"]} - {str(cell.folder) for cell in study.cells}
        if gone:
            raise UserError(f"--out: {root} holds {min(gone)}, which the study no longer has; choose another")
    for cell in study.cells:
        run = root / cell.folder
        if (run / CONFIG).is_file() and has_begun(run):
            change = first_change(yaml.safe_load((run / CONFIG).read_text()), cell.config)
            if change:
                raise UserError(f"--out: {run} was begun with other settings ({change}); choose another, or remove it")


def first_change(before: Any, now: Any, key: str = "") -> str:
    """The first difference of two configs, as `key was this, is that`; "" if there is none."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}, key=str):
            change = first_change(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
            if change:
                return change
        return ""
    return "" if before == now else f"{key} was {before}, is {now}"
