"""Tables in Markdown, and the name of the row that all of a study's tables share."""

from __future__ import annotations

from collections.abc import Sequence

BEFORE = "before training"
"""The row of the model that training starts from."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with numbers aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
