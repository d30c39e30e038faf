"""Text of models and data, made fit for a terminal and a page."""

from __future__ import annotations

import unicodedata

UNPRINTABLE = ("Cc", "Cs")
"""Unicode categories: control characters, and halves of surrogate pairs, which cannot be encoded."""


def printable(text: str) -> str:
    """`text` with every control character but newline and tab replaced: it cannot move the cursor or set colours."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in UNPRINTABLE else "\N{REPLACEMENT CHARACTER}" for c in text
    )
