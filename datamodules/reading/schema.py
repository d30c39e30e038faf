"""Writes the schema of a SQLite database as text for a prompt."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from lit_rlvr.rewards.sql_query import connect

CELL_CHARACTERS = 40
"""Characters of a value that an example row shows."""


def schema_text(path: Path, example_rows: int = 0) -> str:
    """The CREATE statements of a database's tables and views, in the order they were made.

    Args:
        path: a SQLite file, opened read-only.
        example_rows: rows to show in a comment below each statement, as in Rajkumar et al. 2022.

    Raises:
        sqlite3.Error: the file cannot be read, or holds no table.
    """
    with closing(connect(path)) as database:
        made = database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite~_%' "
            "ESCAPE '~' ORDER BY rowid"
        ).fetchall()
        if not made:
            raise sqlite3.DatabaseError("it holds no table")
        text = "\n".join(
            f"{sql.strip()};" + (_examples(database, name, example_rows) if example_rows else "") for name, sql in made
        )
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _examples(database: sqlite3.Connection, table: str, count: int) -> str:
    """The first rows of a table as a comment."""
    quoted = '"' + table.replace('"', '""') + '"'
    rows = database.execute(f"SELECT * FROM {quoted} LIMIT {count}")
    lines = ["\t".join(column[0] for column in rows.description), *("\t".join(map(_cell, row)) for row in rows)]
    return f"\n/* the first rows of {quoted}:\n" + "\n".join(lines) + "\n*/"


def _cell(value: Any) -> str:
    """A value on one line."""
    text = "NULL" if value is None else " ".join(str(value).split())
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 3] + "..."
