"""Sampled completions as a table of plain values, with the pictures of their prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rlvr.run.thumbnails import thumbnail_path

COLUMNS = ("step", "id", "sample", "prompt", "answer", "completion", "reward", "correct", "advantage",
           "finish_reason", "tokens", "status")  # fmt: skip
"""Those of completions.jsonl that every table has; `turns` and `images` are there if any row has them."""


@dataclass(frozen=True)
class Samples:
    """The records of one iteration.

    Args:
        columns: names of the table's columns.
        rows: a value for each column: a number, a truth value, a text or None.
        pictures: for each row, the thumbnails of its prompt's images.
    """

    columns: tuple[str, ...]
    rows: list[list[Any]]
    pictures: list[list[Path]]

    @staticmethod
    def of(records: Sequence[dict[str, Any]], run: Path) -> Samples:
        """The table of records as they stand in completions.jsonl of a run folder."""
        more = tuple(name for name in ("turns", "images") if any(name in record for record in records))
        columns = COLUMNS + more
        rows = [[_cell(record.get(name)) for name in columns] for record in records]
        pictures = [[thumbnail_path(run, key) for key in record.get("images", ())] for record in records]
        return Samples(columns, rows, pictures)

    def with_pictures(self, cell: Callable[[list[Path]], Any]) -> tuple[list[str], list[list[Any]]]:
        """(columns, rows) with a column `picture`, if any row has one.

        Args:
            cell: makes a cell of the pictures of a row.
        """
        if not self.shown:
            return list(self.columns), self.rows
        rows = [[*row, cell(paths)] for row, paths in zip(self.rows, self.pictures, strict=True)]
        return [*self.columns, "picture"], rows

    @property
    def shown(self) -> dict[Path, str]:
        """Each different picture -> the id of the first prompt that has it."""
        ids = [str(row[self.columns.index("id")]) for row in self.rows]
        found: dict[Path, str] = {}
        for name, paths in zip(ids, self.pictures, strict=True):
            for path in paths:
                found.setdefault(path, name)
        return found


def _cell(value: Any) -> Any:
    """A value for a table: the messages of a chat as `role: content`, other lists as JSON."""
    if isinstance(value, list):
        if value and all(isinstance(item, dict) and {"role", "content"} <= set(item) for item in value):
            return "\n".join(f"{item['role']}: {_text(item['content'])}" for item in value)
        return _text(value)
    return value if value is None or isinstance(value, str | int | float) else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
