"""The terminal: text from models and data sets is escaped, so that it cannot control the terminal; and `--json`."""

from __future__ import annotations

import json
import logging
import math
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

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


def number_text(value: float) -> str:
    """Return a number with about three significant digits."""
    if value and abs(value) < 1e-3:
        return f"{value:.2g}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _shown(character: str) -> bool:
    return character not in REORDERING and unicodedata.category(character) not in UNPRINTABLE


class Terminal(Console):
    """rich's console for untrusted text: it ignores markup, and replaces control characters.

    Args:
        options: of rich's console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as text, made printable before it is measured."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make everything printed, including tables and bars, printable; only rich's own control codes are kept."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class PlainFormatter(logging.Formatter):
    """Formats only the message, made printable."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Json:
    """Where results go as JSON; None = they are printed for people."""

    stdout: TextIO | None = None


@contextmanager
def results_as_json(wanted: bool) -> Iterator[None]:
    """With `--json`, stdout gets the document of `show_result` alone; whatever else is printed goes to stderr."""
    if not wanted:
        yield
        return
    _Json.stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _Json.stdout = None


def wants_json() -> bool:
    """Whether `--json` was given."""
    return _Json.stdout is not None


def show_result(result: Any, for_people: Callable[[], object]) -> None:
    """Print the result of a command: as one JSON document with `--json`, else by `for_people`.

    Args:
        result: mappings, lists, texts and numbers; everything else becomes text, and numbers that are not finite null.
    """
    if _Json.stdout is None:
        for_people()
    else:
        print(json.dumps(_plain(result), indent=2, ensure_ascii=False), file=_Json.stdout, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


@contextmanager
def counted(what: str, left: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show how many of `done + left` items are done; call the yielded function once per finished item."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Terminal(stderr=True)) as bar:
        task = bar.add_task(what, total=done + left, completed=done)
        yield lambda: bar.advance(task)
