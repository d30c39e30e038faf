"""The remaining commands of a cell: train, evaluate its model, and once per task evaluate the starting model."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rlvr.compare.study import BEFORE, Cell, Study
from lit_rlvr.distributed.checkpoints import list_checkpoints
from lit_rlvr.export import cached_export, is_run
from lit_rlvr.files import write_atomically
from lit_rlvr.run.outputs import is_complete

CONFIG = "cell.yaml"
"""Name of a cell's config of `fit` in its run folder."""
EVALUATION = "evaluation"
"""Name of the folder of a run's evaluation in its run folder."""
ARGUMENTS_FILE = "asked.json"
"""Name of the file with the arguments of a finished evaluation, in its folder."""


@dataclass(frozen=True)
class CellCommand:
    """One command of a cell.

    Args:
        arguments: the arguments of `lit-rlvr`.
        marker: a file and its content, written when the command succeeds; None if the command's own files show it.
        run: the run whose export in the cache is deleted when the command succeeds, because a study has many.
    """

    arguments: list[str]
    marker: tuple[Path, str] | None = None
    run: Path | None = None

    def __str__(self) -> str:
        return shlex.join(self.arguments)

    def finish(self) -> None:
        if self.marker is not None:
            write_atomically(*self.marker)
        if self.run is not None:
            shutil.rmtree(cached_export(self.run), ignore_errors=True)


def next_command(study: Study, cell: Cell, root: Path) -> CellCommand | None:
    """Return the next command of a cell, or None if the cell is done.

    Args:
        root: the study's folder.
    """
    run = root / cell.folder
    if not is_complete(run):
        again = ["--ckpt_path", "last"] if list_checkpoints(run) else ["--overwrite", "true"]
        return CellCommand(["fit", "--config", str(run / CONFIG), "--trainer.default_root_dir", str(run), *again])
    if not study.suites:
        return None
    command = _evaluate(study, cell, run, str(run), run / EVALUATION)
    if command is None and evaluates_start(study, cell):
        command = _evaluate(study, cell, run, start_model(cell), root / start_folder(cell.task))
    return command


def evaluates_start(study: Study, cell: Cell) -> bool:
    """Return whether this cell also evaluates the model that its task starts from; a warm-started model has no name."""
    first = next(c for c in study.cells if c.task == cell.task and c.name == study.baseline)
    return cell is first and not (cell.config.get("warm_start") or {}).get("steps")


def start_model(cell: Cell) -> str:
    """Return the model that training starts from."""
    return str(((cell.config.get("model") or {}).get("init_args") or {}).get("model", "smollm2"))


def start_folder(task: str) -> Path:
    """Return the folder of the evaluation of a task's starting model, relative to the study's."""
    return Path("runs", task, BEFORE)


def _evaluate(study: Study, cell: Cell, run: Path, model: str, out: Path) -> CellCommand | None:
    """Return the command that evaluates a model on the study's suites as in the cell's run, or None if that is done."""
    engine = (cell.config.get("rollout") or {}).get("engine")
    trainer = cell.config.get("trainer") or {}
    devices = trainer.get("devices") if trainer.get("accelerator") == "gpu" else None
    suites = json.dumps([suite for group in study.suites.values() for suite in group])
    options = ["--suite", suites, "--engine", engine if isinstance(engine, str) else "auto"]
    if isinstance(devices, int) and devices > 1:
        options += ["--devices", str(devices)]
    if study.protocol is not None:
        options += ["--protocol", study.protocol]
    if study.diversity:
        options += ["--diversity", json.dumps(study.diversity)]
    is_start, path = model != str(run), out / ARGUMENTS_FILE
    # Recorded without the study's folder, which may move.
    options_used = [*options, *(["--like", str(cell.folder)] if is_start else [])]
    if path.is_file() and json.loads(path.read_text()) == options_used:
        return None
    arguments = ["evaluate", "--model", model, *options, *(["--like", str(run)] if is_start else []), "--out", str(out)]
    return CellCommand(arguments, (path, json.dumps(options_used) + "\n"), Path(model) if is_run(model) else None)


def read_suites(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Read the results of each suite from the folder of an evaluation; empty without one."""
    path = folder / "results.json"
    found = json.loads(path.read_text()) if path.is_file() and (folder / ARGUMENTS_FILE).is_file() else {}
    return dict(found)
