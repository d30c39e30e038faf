"""A progress bar for a known number of items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lit_rlvr.terminal import Terminal


@contextmanager
def counted(what: str, left: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show how many of `done + left` items are done; call the yielded function once per finished item."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Terminal(stderr=True)) as bar:
        task = bar.add_task(what, total=done + left, completed=done)
        yield lambda: bar.advance(task)
