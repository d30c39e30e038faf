"""The fenced blocks of a completion."""

from __future__ import annotations

import re
from typing import NamedTuple


class Block(NamedTuple):
    """A fenced block.

    Args:
        tag: the text behind the opening fence.
        content: its text, without the indentation of its first line.
        heading: the last line of text before it.
    """

    tag: str
    content: str
    heading: str

    @property
    def language(self) -> str:
        """The language of its tag, which may have attributes ("python title=...", "{.python}"); "" = none."""
        named = _LANGUAGE.match(self.tag)
        if named:
            return named[1].lower()
        return ""


_OPENING = re.compile(r"^(?P<before>[^`~\n]*?)(?P<fence>`{3,}|~{3,})(?P<tag>[^`\n]*)(?:\n|\Z)", re.MULTILINE)
_LANGUAGE = re.compile(r"\s*\{?\s*\.?([\w+#.-]*)(?![\w+#.=-])")
_LIST_OR_QUOTE = " \t>-*+0123456789.)"
_HEADING_CHARACTERS = 500


def fenced_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a text, in order.

    A block begins with three or more backticks or tildes, also behind other text, as in a list. It ends at a line that
    begins with at least as many, at a line that ends with them, or at the end of the text. As in Markdown, a fence that
    is indented by four columns more than the opening one closes nothing (it stands in a docstring), unless no other
    does, and neither does one in a comment ("# ```"). Within a text of three quotes in Python a fence closes nothing
    either, unless the text never ends.
    """
    blocks = []
    place = 0
    while place < len(text) and (opening := _OPENING.search(text, place)):
        fence = opening["fence"]
        start = opening.start()
        end = _closing(opening).search(text, opening.end())
        if end is None or end.start() == len(text):
            end = re.compile(rf"^[ \t>]*{fence[0]}{{{len(fence)},}}|\Z", re.MULTILINE).search(text, opening.end())
        assert end is not None, "a text has an end"
        end = _behind_quotes(text, opening, end)
        before = opening["before"].strip(_LIST_OR_QUOTE)
        heading = before or text[max(0, start - _HEADING_CHARACTERS) : start].rstrip().rpartition("\n")[2]
        content = _without_margin(text[opening.end() : end.start()], ">" in opening["before"])
        blocks.append(Block(opening["tag"], content, heading.strip()))
        opens_another = text[end.end() : end.end() + 1].isalnum()
        if opens_another:
            place = end.start()
        else:
            place = max(end.end(), opening.end())
    return blocks


def _closing(opening: re.Match[str]) -> re.Pattern[str]:
    """Return the pattern of what closes a block."""
    fence = opening["fence"]
    before = opening["before"]
    tab = "\t" if "\t" in before else ""
    indent = rf"[ >{tab}]{{0,{len(before) + 3}}}"
    return re.compile(rf"^{indent}{fence[0]}{{{len(fence)},}}|(?<![#\s])[ \t]?{fence}[ \t]*$|\Z", re.MULTILINE)


MOST_QUOTED = 20
"""Texts of three quotes with a fence that a block may have; more would take time that grows with their square."""
_PYTHON = re.compile(r"[ \t{.]*(?:i?(?:python|py|pypy)[\d.]*\b.*)?", re.IGNORECASE)
_PYTHON_TEXT = re.compile(
    r"#[^\n]*"
    r"|(?P<quotes>\"{3}|'{3})(?:(?:\\.|(?!(?P=quotes)).)*+(?P<whole>(?P=quotes)))?"
    r"|\"(?:\\.|[^\"\\\n])*+\"?"
    r"|'(?:\\.|[^'\\\n])*+'?",
    re.DOTALL,
)
"""A comment or a text of Python; one of three quotes that never ends has no `whole`."""


def _behind_quotes(text: str, opening: re.Match[str], end: re.Match[str]) -> re.Match[str]:
    """Return the fence that closes a block: the first at which no text of three quotes is open, or else the first."""
    if not _PYTHON.fullmatch(opening["tag"]):
        return end
    fence = re.compile(rf"^[ \t>]*{opening['fence']}", re.MULTILINE)
    start = opening.end()
    later: re.Match[str] | None = end
    for _ in range(MOST_QUOTED):
        if later is None:
            return end
        quotes = _open_quotes(text[start : later.start()])
        if not quotes:
            return later
        closing = text.find(quotes, later.end())
        if closing < 0:
            return end
        start = closing + len(quotes)
        later = fence.search(text, start)
    return end


def _open_quotes(content: str) -> str:
    """Return the three quotes with which a text begins in a part of a program and does not end there; "" = none."""
    for found in _PYTHON_TEXT.finditer(content):
        if found["quotes"] and not found["whole"]:
            return found["quotes"]
    return ""


def _without_margin(content: str, is_quoted: bool) -> str:
    """Return a block without the marks of a quotation and the indentation of its first line."""
    if is_quoted:
        content = re.sub(r"^[ \t]*> ?", "", content, flags=re.MULTILINE)
    margin = re.match(r"(?:[ \t]*\n)*([ \t]*)\S", content)
    width = len(margin[1]) if margin else 0
    if width:
        return re.sub(rf"^[ \t]{{1,{width}}}", "", content, flags=re.MULTILINE)
    return content
