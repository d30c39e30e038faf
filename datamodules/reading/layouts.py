"""The layouts that data sets are published in, by which their files are read without `columns`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_rlvr.common.columns import as_object
from lit_rlvr.datamodules.reading.cells import Answers, BadRow, as_answers
from lit_rlvr.datamodules.reading.images import check_media
from lit_rlvr.datamodules.reading.rows import DataRow
from lit_rlvr.types import Sample

FileLayout = tuple[set[str], Callable[[DataRow], Any]]
"""The columns that a layout needs, and its row reader."""


class LayoutReader:
    """Reads the rows of each file with the first layout that fits one of its rows.

    Args:
        layouts: the known layouts.
    """

    def __init__(self, layouts: Sequence[FileLayout]) -> None:
        self._layouts = layouts
        self._readers: dict[str, Callable[[DataRow], Any]] = {}  # by file

    def read(self, row: DataRow, source: str) -> Any:
        """Return what the layout's reader makes of a row of `source` = "file:row".

        Raises:
            BadRow: no known layout has these columns, the row holds video or audio, or it cannot be used.
        """
        file = source.rpartition(":")[0]
        read = self._readers.get(file)
        if read is None:
            read = next((read for needs, read in self._layouts if needs <= row.keys()), None)
        if read is None:
            raise BadRow(f"no known layout, the columns are {', '.join(row)}; map them with `columns`", "columns")
        self._readers[file] = read
        check_media(row, (), images=False)
        return read(row)


def sample_of_fields(fields: Mapping[str, Any], row: DataRow, source: str, answers: Answers) -> Sample:
    """Return the sample of a row whose layout gave these fields.

    Args:
        fields: field of a `Sample` -> its value; `answer` is the whole cell.
        row: column -> cell.
        source: "file:row".
        answers: the meaning of a list of answers; see `as_answers`.
    """
    others = dict(fields)
    cell = others.pop("answer")
    answer, *aliases = as_answers(cell, answers)
    whole = None
    if answers == "object":
        whole = as_object(cell)
    return Sample(**others, answer=answer, aliases=tuple(aliases), row=row, source=source, answer_object=whole)
