"""Roots in words: "2 root 3", "5 times the square root of 2", "the cube root of 5"."""

from __future__ import annotations

import re

_ROOT = re.compile(
    r"(?im)(?:(?<![\w.,])(?P<factor>\d{1,9})\s+(?:times\s+)?(?:the\s+)?|(?P<article>\bthe\s+)"
    r"|(?P<before>^\s*|(?:\b(?:is|are|equals)|[-+=:(/])\s+)(?:the\s+)?)"
    r"(?:(?P<kind>square|cube)\s+)?root\s+(?P<of>of\s+)?(?P<inside>\d{1,9}(?:/\d{1,9})?)"
    r"(?![\w/^]|[.,]\d|\s*(?:[=:]|(?:is|are|was|equals|times|and root)\b))"
)
_INDICES = {"square": "", "cube": "[3]"}


def with_roots(text: str) -> str:
    """Return a text with roots of numbers in LaTeX; a root that its sentence computes ("is 4") stays."""
    if "root" not in text:
        return text
    return _ROOT.sub(_in_latex, text)


def _in_latex(match: re.Match[str]) -> str:
    if match["article"] and not match["of"]:  # "the root 3" is one of several
        return match[0]
    index = _INDICES.get((match["kind"] or "square").lower(), "")
    return f"{match['factor'] or match['before'] or ''}\\sqrt{index}{{{match['inside']}}}"
