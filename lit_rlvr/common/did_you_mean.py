"""The known name that a wrong one may stand for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from lit_rlvr.common.foreign_names import our_option_for


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return a hint with the nearest of the known names, or else another hint."""
    near = nearest(str(name), known)
    if near:
        return f"did you mean {near!r}?"
    return otherwise


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return our name for an option of TRL or verl, or else the known name most similar to a name, or else one that
    begins with it; ignore case and dashes."""
    known = list(known)
    replacement = our_option_for(name, known)
    if replacement:
        return replacement
    plain: dict[str, str] = {}
    for other in sorted(known, key=lambda other: (other[:1].isupper() != name[:1].isupper(), other)):
        plain.setdefault(_plain(other), other)
    start = _plain(name)
    longer = []
    for other in plain:
        if start and other.startswith(start):
            longer.append(other)
    matches = difflib.get_close_matches(start, plain, 1) or longer
    if matches:
        return plain[matches[0]]
    return None


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name).lower()
