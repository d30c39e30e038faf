"""One SQL query on a SQLite file that it can neither change nor leave, under limits on counts instead of time."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlvr.types import ExecutionFailed, Status

SQLRow = tuple[Any, ...]

ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
"""Allowed actions of a query; SQLite refuses all others (writes, PRAGMA, ATTACH, VACUUM, transactions) at once."""
FORBIDDEN_FUNCTIONS = {"load_extension", "random", "randomblob"}
"""Functions that load code or, because they are random, would give the same answer different rewards."""

TICK_INSTRUCTIONS = 100_000
"""Instructions between two checks of the limit, some milliseconds; limits round up to multiples of it."""
HEAP_BYTES = 256 << 20
"""Memory limit of SQLite itself: sorting, grouping, DISTINCT."""
VALUE_BYTES = 16 << 20
"""Size limit of a text or blob."""
RESULT_BYTES = 32 << 20
"""Size limit of a whole result as Python objects."""
FILE_CODES = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
}
LIMIT_CODES = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_TOOBIG}


class QueryLimits(NamedTuple):
    """Limits of a query: instructions of SQLite's virtual machine, and rows of its result."""

    instructions: int
    rows: int


class QueryResult(NamedTuple):
    """Rows, and their size in bytes as Python objects."""

    rows: list[SQLRow]
    size: int


def connect(path: str | Path) -> sqlite3.Connection:
    """Open a read-only connection that creates no file next to the database; text need not be valid UTF-8.

    Raises:
        sqlite3.OperationalError: there is no such file.
    """
    uri = f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    return connection


def run_query(path: str, sql: str, limits: QueryLimits) -> QueryResult:
    """Return the result of one SELECT; the same query gets the same verdict on every machine.

    Raises:
        ExecutionFailed: anything went wrong.
    """
    try:
        with closing(connect(path)) as connection:
            _confine(connection, limits.instructions)
            return _fetch(connection.execute(sql), limits.rows)
    except MemoryError as error:
        raise ExecutionFailed("timeout", "out of memory") from error
    except (sqlite3.Error, sqlite3.Warning, UnicodeError) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest are extended codes
        if code in FILE_CODES:
            status: Status = "error"
        elif code in LIMIT_CODES:
            status = "timeout"
        else:
            status = "parse_fail"
        if code == sqlite3.SQLITE_INTERRUPT:
            reason = "too many instructions"
        else:
            reason = str(error)
        raise ExecutionFailed(status, f"{path}: {reason}" if status == "error" else reason) from error


def _confine(connection: sqlite3.Connection, instructions: int) -> None:
    """Set the limits and permissions of a query, which it cannot change."""
    connection.execute("PRAGMA temp_store = MEMORY")  # sorting must not fill the disk
    connection.execute(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES)
    tick = min(TICK_INSTRUCTIONS, instructions)
    ticks = iter(range(instructions // tick))
    connection.set_progress_handler(lambda: next(ticks, None) is None, tick)  # True: interrupt
    connection.set_authorizer(_authorize)


def _authorize(action: int, _first: str | None, function: str | None, *_: str | None) -> int:
    is_forbidden = action == sqlite3.SQLITE_FUNCTION and function in FORBIDDEN_FUNCTIONS
    if action in ALLOWED and not is_forbidden:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _fetch(cursor: sqlite3.Cursor, limit: int) -> QueryResult:
    if cursor.description is None:  # nothing but comments, or a statement without a result
        raise ExecutionFailed("parse_fail", "not a query")
    rows: list[SQLRow] = []
    size = 0
    for row in cursor:
        size += sys.getsizeof(row) + sum(map(sys.getsizeof, row))
        if len(rows) == limit or size > RESULT_BYTES:
            raise ExecutionFailed("timeout", f"more than {limit} rows or {RESULT_BYTES >> 20} MiB")
        rows.append(row)
    return QueryResult(rows, size)
