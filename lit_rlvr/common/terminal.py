"""Output to the terminal, safe for text from models and data sets; the output of `--json`; the process's activity."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

UNPRINTABLE = ("Cc", "Cs")
"""Unicode categories of control characters and of unpaired surrogates, which no encoding takes."""
REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Unicode's direction marks, embeddings, overrides and isolates, which can make a text look like another one.

Arabic and Hebrew letters do not need them, and the joiners of scripts and emoji are not among them."""


def printable(text: str) -> str:
    """Replace control characters (except newline and tab) and direction characters.

    The result cannot move the cursor, set colours or show its letters in another order.
    """
    if text.isascii() and text.isprintable():
        return text
    unsafe = {c for c in {*text} if c in REORDERING or unicodedata.category(c) in UNPRINTABLE} - {"\n", "\t"}
    return "".join("\N{REPLACEMENT CHARACTER}" if c in unsafe else c for c in text)


def one_line(text: str) -> str:
    """Make `text` printable and put it on one line."""
    return " ".join(printable(text).split())


def number_text(value: float) -> str:
    """Return a number with about three significant digits."""
    if value and abs(value) < 1e-3:
        return f"{value:.2g}".replace("e-0", "e-")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class Terminal(Console):
    """rich's console for untrusted text, which ignores markup and replaces control characters.

    Args:
        options: options of rich's console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a string printable, then render it."""
        return super().render_str(printable(text), **options)

    def print_table(self, table: Table) -> None:
        """Print a table of short cells whole: where it is wider than the terminal, lines wrap, but no cell is cut."""
        for column in table.columns:
            column.no_wrap = True
        needed = Measurement.get(self, self.options.update(max_width=10_000), table).maximum
        if needed > self.width:
            table.width = needed
        self.print(table, crop=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make all output printable, including tables and bars; keep only rich's own control codes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def table_of(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, **options: Any) -> Table:
    """Return a table of text.

    Args:
        columns: names of the columns.
        rows: rows of cells.
        left: how many columns are flush left; the others hold numbers.
        options: options of rich's table.
    """
    table = Table(title_justify="left", **options)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right")
    for row in rows:
        table.add_row(*row)
    return table


class PlainFormatter(logging.Formatter):
    """A formatter of printable messages without level or time."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Json:
    """The stream for results as JSON; None without `--json`."""

    stdout: TextIO | None = None


@contextmanager
def results_as_json() -> Iterator[None]:
    """Send only the document of `show_result` to stdout, and all other output to stderr."""
    _Json.stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _Json.stdout = None


def wants_json() -> bool:
    """Return True if the user gave `--json`."""
    return _Json.stdout is not None


def show_result(result: Any, print_readable: Callable[[], object]) -> None:
    """Print the result of a command: as one JSON document with `--json`, else by calling `print_readable`.

    Args:
        result: mappings, lists, texts and numbers; other values become text, and numbers that are not finite null.
        print_readable: prints the result as readable text.
    """
    if _Json.stdout is None:
        print_readable()
    else:
        print(json.dumps(_plain(result), indent=2, ensure_ascii=False), file=_Json.stdout, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        plain = {}
        for name, item in value.items():
            plain[str(name)] = _plain(item)
        return plain
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


LINE_SECONDS = 20.0
"""Seconds between two lines of a progress bar where there is no terminal."""


@contextmanager
def progress_bar(what: str, left: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show how many of `done + left` items are done; call the yielded function once per finished item.

    Where there is no terminal, it prints a line at the start and one every `LINE_SECONDS` at most.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Terminal(stderr=True)) as bar:
        task = bar.add_task(what, total=done + left, completed=done)
        printed_at = -math.inf

        def one_more(count: int = 1) -> None:
            nonlocal printed_at
            bar.advance(task, count)
            if not bar.console.is_terminal and time.monotonic() - printed_at > LINE_SECONDS:
                printed_at = time.monotonic()
                bar.console.print(f"{what}: {bar.tasks[task].completed:g} of {done + left}", soft_wrap=True)

        one_more(0)
        yield one_more


@dataclass
class Activity:
    """What this process is doing, for whoever follows the run (`run/live.py`). No result depends on it.

    Args:
        stage: what is going on, such as "generating".
        part: what it is part of, such as "validation sums"; "" = training.
        since: when the stage began, in seconds since 1970.
        done: how much of `total` is done.
        total: how much there is to do; 0 = not counted.
        tokens: tokens generated since the stage began.
        waiting: what holds the stage up, such as a reward, and since when.
    """

    stage: str = "starting"
    part: str = ""
    since: float = field(default_factory=time.time)
    done: int = 0
    total: int = 0
    tokens: int = 0
    waiting: dict[str, float] = field(default_factory=dict)

    def begin(self, stage: str, total: int = 0) -> None:
        """Begin the next stage."""
        self.stage = stage
        self.since = time.time()
        self.total = total
        self.done = 0
        self.tokens = 0

    def advance(self, done: int = 1, tokens: int = 0) -> None:
        """Count more of the stage as done."""
        self.done += done
        self.tokens += tokens


progress = Activity()
"""This process's activity."""


def discard_output(descriptor: int) -> None:
    """Send what is still written to a file descriptor nowhere: its reader has gone, and writing would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
