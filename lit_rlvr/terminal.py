"""The terminal: text from models and data sets is escaped, so that it cannot control the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from lit_rlvr.printable import printable


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
