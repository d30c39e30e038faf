"""The file of judges' answers, and of what each judge has spent."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlvr.common.log import log
from lit_rlvr.common.paths import shown, why_not_a_file
from lit_rlvr.errors import UserError, first_line

_TABLES = """
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
    judge TEXT PRIMARY KEY, calls INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER
);
"""
"""Without `synchronous`, a commit costs nothing, and survives the death of the process but not of the machine."""
_COLUMNS = {
    "answers": {"key", "text"},
    "spent": {"judge", "calls", "prompt_tokens", "completion_tokens"},
}
"""The tables of such a file, and their columns."""


class Spent(NamedTuple):
    """What a judge has spent: calls, and tokens of questions and answers."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.prompt_tokens + self.completion_tokens


class Answers:
    """Answers of judges and the sum of what was spent on them, in a SQLite file which processes may share.

    Args:
        server: the server and its model: other ones have answers of their own in the file.
        judge: the reward's name; what it spends is counted by server and name.
        path: the file; ":memory:" = none, they end with this process.

    Raises:
        UserError: the file cannot be opened, or is none of these; then nothing is written into it.
    """

    def __init__(self, server: str, judge: str, path: str | Path = ":memory:") -> None:
        self.server = server
        self.judge = f"{judge}: {server}"
        self.path = path
        try:
            if path != ":memory:":
                _check_file(Path(path))
            self._file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._file.executescript(_TABLES)
        except sqlite3.Error as error:
            if not Path(path).parent.is_dir():
                reason = f"there is no folder {shown(Path(path).parent)}"
            else:
                reason = why_not_a_file(Path(path)) or str(error)
            raise UserError(
                f"{shown(path)}: no file of judges' answers ({reason}); name another as server.answers"
            ) from error

    def copy_from(self, files: Sequence[Path]) -> None:
        """Add what other machines' files hold; a warning names one that cannot be read, as while it is written."""
        for path in files:
            try:
                with closing(_open_for_reading(path)) as file:
                    answers = file.execute("SELECT key, text FROM answers").fetchall()
            except sqlite3.Error as error:
                log.warning(
                    "%s cannot be read (%s), so its answers may be asked for again", shown(path), first_line(error)
                )
                continue
            self._file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", answers)

    def get(self, request: dict[str, Any]) -> str | None:
        """Return the text of the answer to a request; None if there is none."""
        row = self._file.execute("SELECT text FROM answers WHERE key = ?", [self._key_of(request)]).fetchone()
        if row is None:
            return None
        return str(row[0])

    def add(self, request: dict[str, Any], text: str) -> None:
        """Keep the answer to a request; the first one stays."""
        self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", [self._key_of(request), text])

    def drop(self, request: dict[str, Any]) -> None:
        """Forget the answer to a request."""
        self._file.execute("DELETE FROM answers WHERE key = ?", [self._key_of(request)])

    def _key_of(self, request: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps([self.server, request], sort_keys=True).encode()).hexdigest()

    def spend(self, spent: Spent) -> None:
        """Add to what the judge has spent."""
        self._file.execute(
            "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT (judge) DO UPDATE SET calls = calls + excluded.calls, "
            "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
            "completion_tokens = completion_tokens + excluded.completion_tokens",
            [self.judge, *spent],
        )

    def begin_call(self, max_calls: int | None, max_tokens: int | None) -> bool:
        """Count one more call, unless the judge has used up a limit; return whether it was counted.

        No other process can come in between.
        """
        self._file.execute("INSERT OR IGNORE INTO spent VALUES (?, 0, 0, 0)", [self.judge])
        counted = self._file.execute(
            "UPDATE spent SET calls = calls + 1 WHERE judge = :judge AND (:calls IS NULL OR calls < :calls) "
            "AND (:tokens IS NULL OR prompt_tokens + completion_tokens < :tokens)",
            {"judge": self.judge, "calls": max_calls, "tokens": max_tokens},
        )
        return counted.rowcount == 1

    def spent(self) -> Spent:
        """Return what the judge has spent in all processes that use the file."""
        return _spent_in(self._file, self.judge)

    def spent_in(self, files: Sequence[Path]) -> Spent:
        """Return what the judge has spent by other files.

        Raises:
            UserError: one cannot be read.
        """
        sums = [0, 0, 0]
        for path in files:
            try:
                with closing(_open_for_reading(path)) as file:
                    spent = _spent_in(file, self.judge)
            except sqlite3.Error as error:
                raise UserError(f"{shown(path)}: no file of judges' answers ({error}); move it away") from error
            sums = [before + more for before, more in zip(sums, spent, strict=True)]
        return Spent(*sums)


def machine_file(path: Path, machine: int) -> Path:
    """Return a machine's file of answers: SQLite cannot lock a file for several machines on every file system.

    Args:
        path: the first machine's.
        machine: the machine's number.
    """
    if machine == 0:
        return path
    return path.with_name(f"{path.stem}-{machine}{path.suffix}")


def machine_files(path: Path) -> dict[int, Path]:
    """Return the files of answers that are there, by the number of their machine.

    Args:
        path: the first machine's.
    """
    files = {}
    for file in path.parent.glob(f"*{path.suffix}"):
        number = file.stem.removeprefix(f"{path.stem}-")
        if file == path:
            files[0] = file
        elif number.isdecimal() and file == machine_file(path, int(number)):
            files[int(number)] = file
    return files


def _spent_in(file: sqlite3.Connection, judge: str) -> Spent:
    sums = file.execute("SELECT calls, prompt_tokens, completion_tokens FROM spent WHERE judge = ?", [judge]).fetchone()
    if sums is None:
        return Spent()
    return Spent(*sums)


def _open_for_reading(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)


def _check_file(path: Path) -> None:
    """Refuse a file that is there and holds other tables; open it for reading alone.

    Raises:
        UserError: it holds other tables.
        sqlite3.Error: it is no SQLite file.
    """
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return
    with closing(_open_for_reading(path)) as file:
        names = []
        for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"):
            names.append(name)
        others = sorted(name for name in names if _COLUMNS.get(name) != _columns_of(file, name))
    if others:
        raise UserError(
            f"{shown(path)}: no file of judges' answers, because it has the table {others[0]!r}; nothing was written "
            "into it, name another file as server.answers"
        )


def _columns_of(file: sqlite3.Connection, table: str) -> set[str]:
    return {name for (name,) in file.execute("SELECT name FROM pragma_table_info(?)", [table])}
