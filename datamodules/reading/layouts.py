"""Recognises the layout of a data file by its columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from lit_rlvr.datamodules.reading.rows import BadRow

T = TypeVar("T")
Row = Mapping[str, Any]
Read = Callable[[Row], T]


class Layouts(Generic[T]):
    """Gives each file the layout of its first row that fits a known one.

    Args:
        known: the columns that each layout needs, and its row reader; the first layout that fits is used.
    """

    def __init__(self, known: Sequence[tuple[set[str], Read[T]]]) -> None:
        self.known = known
        self._of_file: dict[str, Read[T]] = {}

    def read(self, row: Row, source: str) -> T:
        """A row, read with its file's layout.

        Args:
            row: column -> cell.
            source: "file:row".

        Raises:
            BadRow: no known layout has these columns, or the row cannot be used.
        """
        file = source.rpartition(":")[0]
        read = self._of_file.get(file) or next((read for needs, read in self.known if needs <= row.keys()), None)
        if read is None:
            raise BadRow(f"no known layout, the columns are {', '.join(row)}; map them with `columns`", "columns")
        self._of_file[file] = read
        return read(row)
