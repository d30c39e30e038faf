"""Groups runs that belong together: the seeds of a study's cell, or runs whose settings differ only by seed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from lit_rlvr.commands.report.runs import RunRecord, RunSettings, read_run, without_seed
from lit_rlvr.errors import UserError


@dataclass
class RunGroup:
    """Runs that are shown together.

    Args:
        name: name in legends and tables.
        task: groups of the same task are compared with each other.
        runs: the runs, one per seed.
        wanted: expected number of runs.
        notes: notes on missing or incomplete runs of a study.
        baseline: whether the other groups of the task are compared with this one.
    """

    name: str
    task: str = ""
    runs: list[RunRecord] = field(default_factory=list)
    wanted: int = 0
    notes: list[str] = field(default_factory=list)
    baseline: bool = False

    @property
    def settings(self) -> RunSettings:
        """The settings of the first run that has some."""
        for run in self.runs:
            if run.settings:
                return run.settings
        return {}

    @property
    def problems(self) -> list[str]:
        """All notes on incomplete runs."""
        endings = []
        for run in self.runs:
            if run.ending:
                endings.append(f"{run.path}: {run.ending}")
        return [*self.unreadable, *endings, *self.notes]

    @property
    def unreadable(self) -> list[str]:
        """Notes on files that are missing or cannot be read."""
        found = []
        for run in self.runs:
            for note in run.notes:
                found.append(f"{run.path}: {note}")
        return found


def read_groups(folders: Sequence[Path], read: Callable[[Path], RunRecord] = read_run) -> tuple[str, list[RunGroup]]:
    """Group the runs of folders of runs and of studies; return (title, groups). `read` reads a run.

    Raises:
        UserError: a folder holds neither, or a study's `study.json` is broken.
    """
    studies = []
    for folder in folders:
        if (folder / "study.json").is_file():
            studies.append(read_study(folder, read))
    runs = []
    for folder in folders:
        if not (folder / "study.json").is_file():
            runs.append(read(folder))
    groups = [*(group for _, cells in studies for group in cells), *group_runs(runs)]
    return " + ".join(title for title, _ in studies) or _title(groups), groups


def read_study(folder: Path, read: Callable[[Path], RunRecord] = read_run) -> tuple[str, list[RunGroup]]:
    """Read a study; return (name, one group per cell and task). A missing run becomes a note.

    Raises:
        UserError: `study.json` cannot be read.
    """
    path = folder / "study.json"
    try:
        study: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    groups: dict[tuple[str, str], RunGroup] = {}
    for cell in study["cells"]:
        name = cell["name"]
        task = cell["task"]
        group = groups.setdefault((name, task), RunGroup(name, task, baseline=name == study.get("baseline")))
        group.wanted += 1
        if cell["status"] != "done":
            why = f": {cell['error']}" if cell.get("error") else ""
            group.notes.append(f"{name} on {task}, seed {cell['seed']}: {cell['status']}{why}")
        try:
            group.runs.append(read(folder / cell["run"]))
        except UserError as error:
            if cell["status"] == "done":
                group.notes.append(str(error))
    return study["name"], sorted(groups.values(), key=lambda group: group.task)


def group_runs(runs: Iterable[RunRecord]) -> list[RunGroup]:
    """Group runs in the given order; runs whose settings differ only by `runs.PER_RUN` form one group."""
    groups: dict[Any, list[RunRecord]] = {}
    for run in runs:
        key = tuple(sorted(without_seed(run.settings).items())) if run.settings else run.path
        groups.setdefault(key, []).append(run)
    names = []
    for members in groups.values():
        names.append(_name(members))
    run_groups = []
    for name, members in zip(names, groups.values(), strict=True):
        run_groups.append(
            RunGroup(name if names.count(name) == 1 else str(members[0].path), runs=members, wanted=len(members))
        )
    return run_groups


def _name(runs: list[RunRecord]) -> str:
    """Return the common name of a group's folders: `grpo` for `grpo_0` and `grpo_1`, or for `grpo/seed-0`."""
    folders = (run.path.resolve() for run in runs)
    plain = []
    for folder in folders:
        if re.fullmatch(r"seed[-_]?\d+", folder.name):
            plain.append(folder.parent)
        else:
            plain.append(folder)
    if len(set(plain)) == 1:
        return plain[0].name
    columns = takewhile(lambda letters: len(set(letters)) == 1, zip(*(folder.name for folder in plain), strict=False))
    return "".join(letters[0] for letters in columns).rstrip("-_. 0123456789") or plain[0].name


def _title(groups: list[RunGroup]) -> str:
    """Return a title that names the algorithms and the data, or the groups if no run names these."""
    models = []
    for group in groups:
        if "model" in group.settings:
            models.append(group.settings["model"])
    data = []
    for group in groups:
        if "data" in group.settings:
            data.append(group.settings["data"])
    if not models or not data:
        return _listed([group.name for group in groups], "groups of runs")
    return f"{_listed(models, 'algorithms')} on {_listed(data, 'data sets')}"


def _listed(names: list[str], kind: str) -> str:
    """Return a few names, or the number of many."""
    different = list(dict.fromkeys(names))
    if len(different) < 4:
        return ", ".join(different)
    return f"{len(different)} {kind}"
