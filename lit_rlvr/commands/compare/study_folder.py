"""A study's folder: its settings, each cell's progress and next command, and a lock that admits one process."""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_rlvr.commands.compare.study import BEFORE, Cell, Study, algorithm_options
from lit_rlvr.common.files import check_writable, write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.run_files import is_complete, is_run, list_checkpoints
from lit_rlvr.configs import changes
from lit_rlvr.errors import UserError

CONFIG = "cell.yaml"
"""Name of a cell's config of `fit` in its run folder."""
EVALUATION = "evaluation"
"""Name of the folder of a run's evaluation in its run folder."""
ARGUMENTS_FILE = "asked.json"
"""Name of the file with the arguments of a finished evaluation, in its folder."""


CellStatus = Literal["pending", "running", "done", "failed", "interrupted"]


@dataclass
class State:
    """The progress of a cell.

    Args:
        cell: the cell.
        status: how far it is.
        error: the error of a failed cell, in one line.
    """

    cell: Cell
    status: CellStatus = "pending"
    error: str | None = None


class StudyFolder:
    """`study.json` and the cells' run folders.

    Args:
        root: the folder, created if necessary.
        study: the study.

    Raises:
        UserError: the folder holds another study or a different version of this one, or cannot be written.
    """

    def __init__(self, root: Path, study: Study) -> None:
        self.root = root
        self.study = study
        _check(root, study)
        self.states = {cell.folder: State(cell) for cell in study.cells}
        for state in self.states.values():
            write_atomically(root / state.cell.folder / CONFIG, yaml.safe_dump(state.cell.config, sort_keys=False))
            if next_command(study, state.cell, root) is None:
                state.status = "done"
        self._write()

    def set_status(self, cell: Cell, status: CellStatus, error: str | None = None) -> None:
        """Record a cell's progress."""
        state = self.states[cell.folder]
        state.status = status
        state.error = error
        self._write()

    def with_status(self, *statuses: CellStatus) -> list[State]:
        """Return the states of the cells that have one of these statuses."""
        status = []
        for state in self.states.values():
            if state.status in statuses:
                status.append(state)
        return status

    def _write(self) -> None:
        cells = []
        for state in self.states.values():
            cells.append(
                {
                    "name": state.cell.name,
                    "task": state.cell.task,
                    "seed": state.cell.seed,
                    "run": str(state.cell.folder),
                    "status": state.status,
                    "error": state.error,
                }
            )
        study = {"name": self.study.name, "baseline": self.study.baseline, "cells": cells}
        write_atomically(self.root / "study.json", json.dumps(study, indent=2) + "\n")


@contextmanager
def lock_study(root: Path) -> Iterator[int]:
    """Lock a study's folder; wait for another comparison, or for a cell that a killed one has left.

    Yields:
        The lock's descriptor; a process that inherits it also holds the lock.

    Raises:
        UserError: the folder cannot be written.
    """
    check_writable(root, "--out")
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another comparison, or a cell that it left, is using this; waiting for it to end", root)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


CELL_FILES = ("metrics.csv", "checkpoints", "summary.json")
"""Names of what `fit` writes to its run folder."""


def _check(root: Path, study: Study) -> None:
    """Refuse a folder with runs that are not in this study; the user may add seeds, tasks and cells."""
    path = root / "study.json"
    if path.is_file():
        before = json.loads(path.read_text())
        if before["name"] != study.name:
            raise UserError(f"--out: {root} holds the study {before['name']!r}, not {study.name!r}; choose another")
        removed = {cell["run"] for cell in before["cells"]} - {str(cell.folder) for cell in study.cells}
        if removed:
            raise UserError(f"--out: {root} holds {min(removed)}, which the study no longer has; choose another")
    elif existing := [
        name for name in (*CELL_FILES, "results.json", "results.md", "figures") if (root / name).exists()
    ]:
        raise UserError(f"--out: {root} holds a {existing[0]} that does not belong to a study; choose another")
    for cell in study.cells:
        run_folder = root / cell.folder
        if not any((run_folder / name).exists() for name in CELL_FILES):
            continue
        if not (run_folder / CONFIG).is_file():
            raise UserError(f"--out: {run_folder} holds a run that does not belong to a study; choose another")
        for name, old, new in changes(yaml.safe_load((run_folder / CONFIG).read_text()), cell.config):
            raise UserError(
                f"--out: {run_folder} was begun with other settings ({name} was {old}, is {new}); "
                "choose another, or remove it"
            )


@dataclass(frozen=True)
class CellCommand:
    """One command of a cell.

    Args:
        arguments: the arguments of `lit-rlvr`.
        marker: a file and its content, written when the command succeeds; None if the command's own files show it.
        run_folder: the run whose export in the cache is deleted when the command succeeds, because a study has many.
    """

    arguments: list[str]
    marker: tuple[Path, str] | None = None
    run_folder: Path | None = None

    def __str__(self) -> str:
        return shlex.join(self.arguments)

    def finish(self) -> None:
        """Record that the command succeeded, and delete the exported model of its run."""
        if self.marker is not None:
            write_atomically(*self.marker)
        if self.run_folder is not None:
            from lit_rlvr.run.saved_model import cached_export

            shutil.rmtree(cached_export(self.run_folder), ignore_errors=True)


def next_command(study: Study, cell: Cell, root: Path) -> CellCommand | None:
    """Return the next command of a cell, or None if the cell is done.

    Args:
        study: the study.
        cell: the cell.
        root: the study's folder.
    """
    run_folder = root / cell.folder
    if not is_complete(run_folder):
        if list_checkpoints(run_folder):
            again = ["--ckpt_path", "last"]
        else:
            again = ["--overwrite", "true"]
        config = str(run_folder / CONFIG)
        return CellCommand(["fit", "--config", config, "--trainer.default_root_dir", str(run_folder), *again])
    if not study.suites:
        return None
    command = _evaluate(study, cell, run_folder, str(run_folder), run_folder / EVALUATION)
    if command is None and evaluates_start(study, cell):
        start = str(algorithm_options(cell.config).get("model", "smollm2"))
        command = _evaluate(study, cell, run_folder, start, root / start_folder(cell.task))
    return command


def evaluates_start(study: Study, cell: Cell) -> bool:
    """Return whether this cell also evaluates the model that its task starts from; a warm-started model has no name."""
    baseline = next(c for c in study.cells if c.task == cell.task and c.name == study.baseline)
    return cell is baseline and not (cell.config.get("warm_start") or {}).get("steps")


def start_folder(task: str) -> Path:
    """Return the folder of the evaluation of a task's starting model, relative to the study's."""
    return Path("runs", task, BEFORE)


def _evaluate(study: Study, cell: Cell, run_folder: Path, model: str, out: Path) -> CellCommand | None:
    """Return the command that evaluates a model on the study's suites as in the cell's run, or None if that is done.

    Args:
        study: the study.
        cell: the cell.
        run_folder: the cell's run folder, whose settings the evaluation uses.
        model: the model to evaluate.
        out: folder of the evaluation.
    """
    engine = (cell.config.get("rollout") or {}).get("engine")
    trainer = cell.config.get("trainer") or {}
    if trainer.get("accelerator") == "gpu":
        devices = trainer.get("devices")
    else:
        devices = None
    options = ["--suite", json.dumps(study.all_suites), "--engine", engine if isinstance(engine, str) else "auto"]
    if isinstance(devices, int) and devices > 1:
        options += ["--devices", str(devices)]
    if study.protocol is not None:
        options += ["--protocol", study.protocol]
    if study.diversity:
        options += ["--diversity", json.dumps(study.diversity)]
    is_start = model != str(run_folder)
    path = out / ARGUMENTS_FILE
    # Recorded without the study's folder, which may move.
    options_used = [*options, *(["--like", str(cell.folder)] if is_start else [])]
    if path.is_file() and json.loads(path.read_text()) == options_used:
        return None
    arguments = ["evaluate", "--model", model, *options]
    if is_start:
        arguments += ["--like", str(run_folder)]
    arguments += ["--out", str(out)]
    return CellCommand(arguments, (path, json.dumps(options_used) + "\n"), Path(model) if is_run(model) else None)


def read_suites(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Read the results of each suite from the folder of an evaluation; empty without one."""
    path = folder / "results.json"
    if path.is_file() and (folder / ARGUMENTS_FILE).is_file():
        return dict(json.loads(path.read_text()))
    return {}
