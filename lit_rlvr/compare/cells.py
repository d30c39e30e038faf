"""What a cell still has to do: train, evaluate its model, and once per task the untrained one."""

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
"""A cell's config of `fit`, in its run folder."""
EVALUATION = "evaluation"
"""The folder of a run's evaluation, in its run folder."""
ASKED = "asked.json"
"""What an evaluation that ended was asked for, in its folder."""


@dataclass(frozen=True)
class Step:
    """One command of a cell.

    Args:
        arguments: of `lit-rlvr`.
        ends: written when the command succeeds: a file and its content; None if the command itself shows that.
        run: the run that the command exports to the cache, to be removed from there when it succeeds: a study has many.
    """

    arguments: list[str]
    ends: tuple[Path, str] | None = None
    run: Path | None = None

    def __str__(self) -> str:
        return shlex.join(self.arguments)

    def succeeded(self) -> None:
        if self.ends is not None:
            write_atomically(*self.ends)
        if self.run is not None:
            shutil.rmtree(cached_export(self.run), ignore_errors=True)


def next_step(study: Study, cell: Cell, root: Path) -> Step | None:
    """The next command of a cell, None if it is done.

    Args:
        root: the study's folder.
    """
    run = root / cell.folder
    if not is_complete(run):
        again = ["--ckpt_path", "last"] if list_checkpoints(run) else ["--overwrite", "true"]
        return Step(["fit", "--config", str(run / CONFIG), "--trainer.default_root_dir", str(run), *again])
    if not study.suites:
        return None
    after = _evaluate(study, cell, run, str(run), run / EVALUATION)
    return after or (
        _evaluate(study, cell, run, start_of(cell), root / start_folder(cell.task)) if starts(study, cell) else None
    )


def starts(study: Study, cell: Cell) -> bool:
    """Whether this cell also evaluates the model that its task starts from; a warm-started one has no name."""
    first = next(c for c in study.cells if c.task == cell.task and c.name == study.baseline)
    return cell is first and not (cell.config.get("warm_start") or {}).get("steps")


def start_of(cell: Cell) -> str:
    """The model that training starts from."""
    return str(((cell.config.get("model") or {}).get("init_args") or {}).get("model", "smollm2"))


def start_folder(task: str) -> Path:
    """The folder of the evaluation of a task's starting model, inside the study's."""
    return Path("runs", task, BEFORE)


def _evaluate(study: Study, cell: Cell, run: Path, model: str, out: Path) -> Step | None:
    """The command that evaluates a model on the study's suites like the cell's run, unless that is done."""
    engine = (cell.config.get("rollout") or {}).get("engine")
    trainer = cell.config.get("trainer") or {}
    devices = trainer.get("devices") if trainer.get("accelerator") == "gpu" else None
    asked = json.dumps([suite for group in study.suites.values() for suite in group])
    options = ["--suite", asked, "--engine", engine if isinstance(engine, str) else "auto"]
    if isinstance(devices, int) and devices > 1:
        options += ["--devices", str(devices)]
    if study.protocol is not None:
        options += ["--protocol", study.protocol]
    if study.diversity:
        options += ["--diversity", json.dumps(study.diversity)]
    like, told = model != str(run), out / ASKED
    asks = [*options, "--like", str(cell.folder)] if like else options  # without the study's folder, which may move
    if told.is_file() and json.loads(told.read_text()) == asks:
        return None
    arguments = ["evaluate", "--model", model, *options, *(["--like", str(run)] if like else []), "--out", str(out)]
    return Step(arguments, (told, json.dumps(asks) + "\n"), Path(model) if is_run(model) else None)


def read_suites(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Suite -> its results, in the folder of an evaluation; empty without one."""
    path = folder / "results.json"
    found = json.loads(path.read_text()) if path.is_file() and (folder / ASKED).is_file() else {}
    return dict(found)
