"""Makes text from models and data safe to show in a terminal or on a page."""

from __future__ import annotations

import unicodedata

UNPRINTABLE = ("Cc", "Cs")
"""Unicode categories: control characters, and halves of surrogate pairs, which cannot be encoded."""
REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Unicode's direction marks, embeddings, overrides and isolates, which can make a text look like another one. Arabic
and Hebrew letters do not need them, and the joiners of scripts and emoji are not among them."""


def printable(text: str) -> str:
    """`text` with control characters (except newline and tab) and direction characters replaced: it cannot move the
    cursor, set colours or show its letters in another order."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" or _shown(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """`text` printable and on one line."""
    return " ".join(printable(text).split())


def _shown(character: str) -> bool:
    return character not in REORDERING and unicodedata.category(character) not in UNPRINTABLE
