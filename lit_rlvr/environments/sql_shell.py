"""A SQL shell as a tool: the model queries the sample's database, reads rows or the error, then answers."""

from __future__ import annotations

from typing import Any

from lit_rlvr.environments.tools import Tools
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.sql_query import Limits, QueryFailed, run_query
from lit_rlvr.types import Sample


class SQLShell(Tools):
    """A tool that runs read-only queries on the first SQLite file of `sample.row["databases"]`.

    It shows the rows or the error.

    The last turn, which calls no tool, holds the answer, which `SQLExecution` judges.

    Args:
        shown_rows: most rows of a result to show.
        max_instructions: limit on one query, in instructions of SQLite's virtual machine.
        kwargs: `limits` and `offer` of every environment with tools.
    """

    def __init__(self, shown_rows: int = 10, max_instructions: int = 20_000_000, **kwargs: Any) -> None:
        for option, value in (("shown_rows", shown_rows), ("max_instructions", max_instructions)):
            if value < 1:
                raise UserError(f"SQLShell.{option} must be at least 1, got {value}")
        super().__init__(**kwargs)
        self.shown_rows, self._limits, self._path = shown_rows, Limits(max_instructions, 100_000), ""

    def reset(self, sample: Sample) -> None:
        databases = sample.row.get("databases")
        if not databases:
            raise UserError(f"{sample.source or sample.id}: no `databases` in its row; use the data of TextToSQL")
        self._path = str(databases[0])

    def query(self, sql: str) -> str:
        """Run a SQL query on the database and see its rows.

        Args:
            sql: One SELECT statement of SQLite.
        """
        try:
            rows = run_query(self._path, sql, self._limits).rows
        except QueryFailed as failure:
            raise ValueError(failure.reason) from failure
        shown = [" | ".join(map(_cell, row)) for row in rows[: self.shown_rows]]
        left = len(rows) - len(shown)
        return "\n".join([*shown, *([f"... and {left} more rows"] if left else [])]) or "no rows"


def _cell(value: Any) -> str:
    return "NULL" if value is None else repr(value) if isinstance(value, bytes) else str(value)
