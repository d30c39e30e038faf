"""`BadRow`: a row of a data set that cannot be used."""

from __future__ import annotations


class BadRow(Exception):
    """A row that cannot be used. The DataModule skips and counts it, and refuses a file with more than `max_bad_rows`.

    Args:
        reason: what is wrong with the row, for the user.
        field: the field concerned ("prompt", "answer", ...).
        source: "file:row"; `PromptDataModule` fills it in.
    """

    def __init__(self, reason: str, field: str = "row", source: str = "") -> None:
        super().__init__(reason)
        self.reason, self.field, self.source = reason, field, source

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.field, self.reason) if part)
