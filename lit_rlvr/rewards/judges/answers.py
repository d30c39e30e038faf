"""The answers of judges on disk, by the content of the questions, and what they cost."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlvr.errors import UserError, shown

_TABLES = """
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (calls INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER);
INSERT INTO spent SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM spent);
"""
"""Without `synchronous`, a commit survives the death of a process, though not that of the machine, and costs nothing."""


class Spent(NamedTuple):
    """Everything that the calls of a file's answers used, failed ones included."""

    calls: int
    prompt_tokens: int
    completion_tokens: int


def key_of(request: dict[str, Any]) -> str:
    """Return the name of a request's answer: a hash of all that it consists of."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class Answers:
    """Answers of judges and the sum of what was spent on them, in a SQLite file which processes may share.

    Args:
        path: the file; ":memory:" = none, they end with this process.

    Raises:
        UserError: the file cannot be opened, or is none of these.
    """

    def __init__(self, path: str | Path = ":memory:") -> None:
        try:
            self._file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._file.executescript(_TABLES)
            self.spent()
        except sqlite3.Error as error:
            raise UserError(
                f"{shown(path)}: no file of judges' answers ({error}); delete it or name another"
            ) from error

    def get(self, key: str) -> str | None:
        """Return the text of an answer; None if there is none."""
        found = self._file.execute("SELECT text FROM answers WHERE key = ?", [key]).fetchone()
        return None if found is None else str(found[0])

    def add(self, key: str, text: str) -> None:
        """Keep an answer; the first one stays."""
        self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", [key, text])

    def spend(self, calls: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Add to what was spent."""
        self._file.execute(
            "UPDATE spent SET calls = calls + ?, prompt_tokens = prompt_tokens + ?, "
            "completion_tokens = completion_tokens + ?", [calls, prompt_tokens, completion_tokens],
        )  # fmt: skip

    def spent(self) -> Spent:
        """Return what was spent so far, by all processes that use the file."""
        return Spent(*self._file.execute("SELECT * FROM spent").fetchone())

    def close(self) -> None:
        self._file.close()
