"""`RowSources`: where the rows of each split are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from lit_rlvr.datamodules.reading.mixing import named_files
from lit_rlvr.datamodules.reading.readers import GivenRows, SourceRow, read_rows
from lit_rlvr.datamodules.reading.split import Split
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample


class RowSources:
    """The files, folders, hub names or given rows that the splits of a data set are read from.

    Args:
        train: the option of a data module.
        validation: likewise.
        test: likewise.

    Attributes:
        locations: split -> its file, folder or hub name, or the name of given rows; None = there is none.
        given: split -> its rows, if they were given from Python.
        files: name of a set -> its file, if the training rows are in several files.
        weights: name of such a set -> how often it is drawn, in relation to the others; {} = by size.
    """

    def __init__(self, train: Any, validation: Any, test: Any) -> None:
        self.locations: dict[str, str | None] = {}
        self.given: dict[str, GivenRows] = {}
        self.files, self.weights = named_files(train)
        files = ", ".join(self.files.values())
        for split, rows in {"train": files or train, "validation": validation, "test": test}.items():
            if rows is None:
                self.locations[split] = None
            elif isinstance(rows, str | os.PathLike):
                self.locations[split] = os.fspath(rows)
            else:
                self.given[split] = GivenRows(rows, split)
                self.locations[split] = self.given[split].name

    def read(self, split: Split, name: str) -> Iterator[tuple[str, SourceRow]]:
        """Yield the rows of a split, each with the name of its set; `name` is that of a single file's."""
        location = self.given.get(split, self.locations[split])
        if location is None:
            return
        files: dict[str, Any] = {name: location}
        if split == "train" and self.files:
            files = self.files
        for set_name, file in files.items():
            for row in read_rows(file, split):
                yield set_name, row

    def check_used(self, split: Split, samples: Iterable[Sample]) -> None:
        """Refuse a file that none of the usable samples of a split is from.

        Raises:
            UserError: names the first such file.
        """
        names = {sample.dataset for sample in samples}
        unused = []
        if split == "train":
            unused = [file for name, file in self.files.items() if name not in names]
        location = self.locations[split]
        if location and not names:
            unused.append(location)
        if unused:
            raise UserError(f"{unused[0]}: no usable row in it")
