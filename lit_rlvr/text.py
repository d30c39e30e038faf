"""Text of models and data, made fit for a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """`text` with every control character but newline and tab replaced: it cannot move the cursor or set colours."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text)
