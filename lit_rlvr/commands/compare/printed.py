"""Reads the papers' printed tables and the claims of their studies, from files in configs/printed or users' own."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from lit_rlvr.commands.compare.claims import AVERAGE, PrintedClaim
from lit_rlvr.commands.compare.study import BEFORE, Study
from lit_rlvr.configs import config_folder, find_shipped, load_yaml
from lit_rlvr.errors import UserError

VALUE = re.compile(r"(\d+(?:\.\d+)?)(?: ± (\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class PrintedValue:
    """A printed value, in percent.

    Args:
        value: the value in percent.
        deviation: standard deviation over the paper's seeds; None if it prints none.
    """

    value: float
    deviation: float | None

    @classmethod
    def parse(cls, cell: Any) -> PrintedValue:
        """Parse a number, or text such as "68.4 ± 0.2"."""
        match = VALUE.fullmatch(str(cell))
        if match is None:
            raise UserError(f"{cell!r} is neither a number nor like '68.4 ± 0.2'")
        return cls(float(match[1]), float(match[2]) if match[2] else None)

    def __str__(self) -> str:
        return f"{self.value:.1f}" + (f" ± {self.deviation:.1f}" if self.deviation is not None else "")


def _scaled(spread: Mapping[str, Any] | None, factor: float) -> dict[str, Any] | None:
    """Return a spread in another unit; None without a value."""
    if spread is None or spread["mean"] is None:
        return None
    scaled = {}
    for key in ("mean", "std"):
        if spread[key] is not None:
            scaled[key] = spread[key] * factor
    return {**spread, **scaled}


SPREAD_COLUMNS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]] = {
    "GiB": lambda cell: _scaled(cell["peak_memory_mb"], 1 / 1024 / 100),
    "seconds": lambda cell: _scaled(cell["seconds_per_step"].get("step"), 1 / 100),
}
"""Column -> its spread for a cell in results.json, divided by 100, because tables show percentages."""


@dataclass(frozen=True)
class PrintedTable:
    """One table of a paper, or a part of it.

    Args:
        task: the study's task.
        suite: the suite whose metrics or categories are the columns; None: the columns are suites.
        metric: the metric of all columns; None: the columns are metrics; `run`: the columns are of `SPREAD_COLUMNS`.
        columns: suites, metrics or categories; `Avg.` is the average over the suites.
        rows: cell -> values.
    """

    task: str
    suite: str | None
    metric: str | None
    columns: list[str]
    rows: dict[str, list[PrintedValue]]

    @property
    def title(self) -> str:
        """The title of the table: task, suite and metric."""
        return ", ".join(filter(None, [self.task, self.suite, self.metric]))

    def ours(self, row: str, column: str, task: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return our spread for a cell of the table from the task in results.json; None if there is none."""
        if self.metric == "run":
            if row == BEFORE:
                return None
            return SPREAD_COLUMNS[column](task["cells"][row])
        if row == BEFORE:
            tables = task.get("before_suites", {})
        else:
            tables = task["cells"][row]["suites"]
        for values in tables.values():
            if self.suite is None:
                if column == AVERAGE:
                    results = values["average"]
                else:
                    results = values["suites"].get(column, {})
                spread = results.get(self.metric)
                if spread:
                    return dict(spread)
            elif self.suite in values["suites"]:
                results = values["suites"][self.suite]
                key = self.metric or column
                if self.metric is not None:
                    results = results["categories"].get(column, {})
                return results.get(key)
        return None


@dataclass(frozen=True)
class Paper:
    """A file of printed tables and claims.

    Args:
        study: the study that makes the tables and decides the claims.
        seeds: the paper's seeds behind a printed deviation; None = not stated.
        tables: the printed tables.
        claims: the printed claims.
    """

    study: str
    seeds: int | None
    tables: list[PrintedTable]
    claims: Sequence[PrintedClaim] = ()

    def check(self, study: Study, suites: Collection[str]) -> None:
        """Refuse tables and claims about tasks, cells or suites that the study does not have.

        Args:
            study: the study that the paper's tables are compared with.
            suites: the names of the study's suites.

        Raises:
            UserError: names the first one and what there is.
        """
        for claim in self.claims:
            cells = []
            for cell in (claim.more, claim.less):
                if isinstance(cell, str):
                    cells.append(cell)
            _check_known(study, claim.task, cells, claim.averaged, suites)
        for table in self.tables:
            known = SPREAD_COLUMNS if table.metric == "run" else [*suites, AVERAGE]
            columns = table.columns if table.suite is None else [table.suite]
            _check_known(study, table.task, table.rows, columns, known)


def _check_known(study: Study, task: str, cells: Iterable[str], columns: Iterable[str], known: Collection[str]) -> None:
    for kind, names, existing in (
        ("task", [task], study.tasks),
        ("cell", cells, [*study.names, BEFORE]),
        ("suite or column", columns, known),
    ):
        for name in names:
            if name not in existing:
                raise UserError(f"{study.name} has no {kind} {name!r}; it has {', '.join(existing) or 'none'}")


def _read_table(given: Mapping[str, Any]) -> PrintedTable:
    task = str(given["task"])
    columns = []
    for column in given["columns"]:
        columns.append(str(column))
    rows = {}
    for row, cells in given["rows"].items():
        rows[str(row)] = [PrintedValue.parse(cell) for cell in cells]
    return PrintedTable(task, given.get("suite"), given.get("metric"), columns, rows)


def load_printed(name: str) -> Paper:
    """Read printed tables: shipped ones by name (apmpo/table1), or a YAML file in the same form.

    Raises:
        UserError: there is no such file, or it does not have this form; the message says where.
    """
    path = find_shipped("printed", name, "TABLE", "table")
    try:
        values = load_yaml(path.read_text())
        if not isinstance(values, dict) or not values.keys() & {"tables", "claims"}:
            raise KeyError("tables")
        tables = []
        for table in values.get("tables", ()):
            tables.append(_read_table(table))
        claims = []
        for claim in values.get("claims", ()):
            claims.append(PrintedClaim(**claim))
        study = str(values["study"])
        seeds = values.get("seeds")
    except KeyError as error:
        raise UserError(
            f"{path} has no {error.args[0]!r}; see the shipped ones in {config_folder() / 'printed'}"
        ) from error
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not have the form of the shipped tables: {error!r}") from error
    for t in tables:
        for row, cells in t.rows.items():
            if len(cells) != len(t.columns):
                raise UserError(f"{path}: {t.title}: {row} has {len(cells)} values for {len(t.columns)} columns")
    return Paper(study, seeds, tables, [with_printed(claim, tables) for claim in claims])


def with_printed(claim: PrintedClaim, tables: Sequence[PrintedTable]) -> PrintedClaim:
    """Return a claim with the suites of an average, and with the difference of its sign that a table prints for it."""
    for t in tables:
        column = claim.metric if t.suite is not None else claim.suite
        names = (claim.suite, None) if t.suite is not None else (None, claim.metric)
        if t.task != claim.task or (t.suite, t.metric) != names or column not in t.columns:
            continue
        if claim.suite == AVERAGE:
            claim = replace(claim, suites=[name for name in t.columns if name != AVERAGE])
        if claim.printed is None and {claim.more, claim.less} <= t.rows.keys():
            values = []
            for row in (claim.more, claim.less):
                values.append(t.rows[str(row)][t.columns.index(str(column))].value)
            difference = round(values[0] - values[1], 3) / 100
            if difference > 0:
                return replace(claim, printed=difference)
            return claim
    if claim.suite == AVERAGE and not claim.suites:
        raise UserError(f"claim {claim.says!r}: no table has the column {AVERAGE} of {claim.task}, {claim.metric}")
    return claim
