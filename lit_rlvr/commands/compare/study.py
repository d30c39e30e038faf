"""Studies: reads the cells of a study and the config of each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain, product
from pathlib import Path
from typing import Any

from lit_rlvr.configs import TOP_KEYS, find_base, find_config, load_config, merge, read_config, require_keys
from lit_rlvr.errors import UserError

BEFORE = "before training"
"""Name of the row of the model that training starts from."""
KEYS = (
    "name", "base", "tasks", "cells", "seeds", "baseline", "budget", "metric", "suites", "protocol", "diversity",
)  # fmt: skip
"""Keys of a study."""

BUDGETS = ("steps", "samples", "tokens")
SET_BY_STUDY = ("seed_everything", "budget", "overwrite", "ckpt_path")
"""Config keys that the study itself sets."""
TRAINER_SET_BY_STUDY = ("max_steps", "max_epochs", "default_root_dir")
"""Options of `trainer` that the study itself sets."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a study.

    Args:
        task: name of the task.
        name: name of the cell, as in the tables.
        seed: seed of the run.
        config: the config of `fit`, without the run folder.
    """

    task: str
    name: str
    seed: int
    config: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The run folder, relative to the study's."""
        return Path("runs", self.task, self.name, f"seed-{self.seed}")

    def __str__(self) -> str:
        return f"{self.task}, {self.name}, seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """A comparison.

    Args:
        name: name of the study.
        cells: all cells, ordered by seed, so that the first seed covers every task and algorithm.
        baseline: name of the cell to compare the others with.
        budget: steps, samples or tokens, and how many.
        metric: column of metrics.csv whose last values the study compares.
        suites: name of a table -> its suites, in the form of a list for `evaluate --suite`.
        protocol: a protocol of `evaluate` for the suites, or None.
        diversity: measures of the suites' completions, in the form of `evaluate --diversity`.
    """

    name: str
    cells: tuple[Cell, ...]
    baseline: str
    budget: tuple[str, int]
    metric: str
    suites: Mapping[str, list[str | dict[str, Any]]] = field(default_factory=dict)
    protocol: str | None = None
    diversity: list[Any] = field(default_factory=list)

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, in the order of the cells."""
        return list(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def names(self) -> list[str]:
        """The names of the cells, starting with the baseline."""
        return list(dict.fromkeys([self.baseline, *(cell.name for cell in self.cells)]))

    @property
    def all_suites(self) -> list[str | dict[str, Any]]:
        """The suites of all tables."""
        return list(chain.from_iterable(self.suites.values()))

    @property
    def seeds(self) -> list[int]:
        """The seeds, in the order of the cells."""
        return list(dict.fromkeys(cell.seed for cell in self.cells))


def load_study(name: str) -> Study:
    """Read a study: a file, or a shipped one by name (`studies/smoke`).

    A cell's config has layers, each merged over the previous ones: the `base` of the study, the task and the cell, then
    the task, the cell, the budget and the seed.

    Raises:
        UserError: it is not a valid study; the message says where.
    """
    path = find_config(name, "STUDY")
    study = read_config(path, KEYS, "STUDY")
    missing = []
    for key in ("name", "cells", "baseline", "budget"):
        if key not in study:
            missing.append(key)
    if missing:
        raise UserError(f"STUDY: {path}: `{missing[0]}` is missing")
    tasks = _named(study.get("tasks", {"task": {}}), "tasks", path)
    cells = _named(study["cells"], "cells", path)
    seeds = study.get("seeds", [0, 1, 2])
    budget = _budget(study["budget"], path)
    if not _are_seeds(seeds):
        raise UserError(f"STUDY: {path}: seeds: {seeds} is not a list of different whole numbers")
    if study["baseline"] not in list(cells):
        raise UserError(f"STUDY: {path}: baseline: {study['baseline']!r} is not one of the cells {', '.join(cells)}")
    shared = list(_bases(study, path))
    bases = {}
    for layer in (*tasks.values(), *cells.values()):
        bases[id(layer)] = list(_bases(layer, path))
    grid = []
    for seed, (task, task_config), (cell, cell_config) in product(seeds, tasks.items(), cells.items()):
        layers = [
            *shared,
            *bases[id(task_config)],
            *bases[id(cell_config)],
            _without_base(task_config),
            _without_base(cell_config),
            _budget_layer(*budget),
            {"seed_everything": seed},
        ]
        grid.append(Cell(task, cell, seed, reduce(merge, layers)))
    return Study(
        str(study["name"]),
        tuple(grid),
        study["baseline"],
        budget,
        metric=str(study.get("metric", "val/accuracy")),
        suites=_suites(study.get("suites") or {}, path),
        protocol=study.get("protocol"),
        diversity=list(study.get("diversity") or []),
    )


def _are_seeds(value: Any) -> bool:
    """Return True for a list of different whole numbers from 0."""
    if not isinstance(value, list) or not value:
        return False
    numbers = set()
    for seed in value:
        if type(seed) is int and seed >= 0:
            numbers.add(seed)
    return len(numbers) == len(value)


def algorithm_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the algorithm that a config sets."""
    model = config.get("model")
    return dict((model.get("init_args") or {}) if isinstance(model, dict) else {})  # a name alone has none


def _suites(given: Any, path: Path) -> dict[str, list[str | dict[str, Any]]]:
    """Return the suites by table; resolve files in the study's folder to absolute paths."""
    if isinstance(given, dict):
        tables = given
    else:
        tables = {"suites": given}
    resolved = {}
    for name, suites in tables.items():
        if not isinstance(suites, list) or not all(isinstance(suite, str | dict) for suite in suites):
            raise UserError(
                f"STUDY: {path}: suites.{name}: give a list of suites, or one per table: {{math: [math500]}}"
            )
        resolved[str(name)] = [_resolve_suite(suite, path) for suite in suites]
    return resolved


def _resolve_suite(suite: str | dict[str, Any], path: Path) -> str | dict[str, Any]:
    """Return a suite with the absolute path of its file, if that lies next to the study."""
    if isinstance(suite, dict):
        return suite | {"suite": _resolve_suite(str(suite.get("suite", "")), path)}
    name, equals, location = suite.rpartition("=")
    path_near = path.parent / location
    if path_near.is_file():
        return f"{name}{equals}{path_near.resolve()}"
    return suite


def _named(section: Any, key: str, path: Path) -> dict[str, dict[str, Any]]:
    """Check the tasks or cells, whose names become folders; return name -> config."""
    if not isinstance(section, dict) or not section:
        raise UserError(f"STUDY: {path}: {key}: give a mapping of names to the options each changes")
    named = {}
    for name, config in section.items():
        named[str(name)] = config or {}
    allowed = [key for key in TOP_KEYS if key not in SET_BY_STUDY]
    for name, config in named.items():
        where = f"STUDY: {path}: {key}.{name}"
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"{where}: a name may have only letters, digits and _ . + -; it becomes a folder")
        trainer = require_keys(config, allowed, where).get("trainer") or {}
        for option in TRAINER_SET_BY_STUDY:
            if option in trainer:
                raise UserError(f"{where}: trainer.{option} is set by the study (budget, --out)")
    return named


def _budget(section: Any, path: Path) -> tuple[str, int]:
    if isinstance(section, dict) and len(section) == 1:
        ((unit, count),) = section.items()
        if unit in BUDGETS and type(count) is int and count > 0:
            return unit, count
    raise UserError(f"STUDY: {path}: budget: give one of {', '.join(BUDGETS)} with a positive number, not {section!r}")


def _bases(layer: dict[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """Yield the configs that a layer's `base` names: one, or a list of them."""
    names = layer.get("base") or []
    for name in names if isinstance(names, list) else [names]:
        yield load_config(find_base(str(name), path))


def _without_base(layer: dict[str, Any]) -> dict[str, Any]:
    own = {}
    for key, value in layer.items():
        if key != "base":
            own[key] = value
    return own


def _budget_layer(unit: str, count: int) -> dict[str, Any]:
    """Return the config layer that ends a run with its budget; it overrides the layers below."""
    return {
        "trainer": {"max_steps": count if unit == "steps" else -1, "max_epochs": -1},
        "budget": {name: count if unit == name else None for name in ("samples", "tokens")},
    }
