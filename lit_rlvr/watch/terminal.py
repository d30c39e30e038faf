"""`lit-rlvr watch --terminal`: the runs in a table that refreshes."""

from __future__ import annotations

import threading
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_rlvr.report.charts import Curve, curve, number_text
from lit_rlvr.run.monitor import findings
from lit_rlvr.terminal import Terminal
from lit_rlvr.watch.follow import FollowedFolders

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 12
"""Width of a curve in characters."""
COLUMNS = (
    ("reward", "rollout/reward"), ("accuracy", "rollout/accuracy"), ("held out", "val/accuracy"),
    ("entropy", "train/entropy"), ("length", "rollout/length"),
)  # fmt: skip
"""Heading -> metric."""


def show(
    folders: FollowedFolders, stop: threading.Event, seconds: float = 1.0, console: Terminal | None = None
) -> None:
    """Show the runs until `stop` is set, and refresh after so many seconds; show them once if the console is no
    terminal."""
    console = console or Terminal()
    if not console.is_terminal:
        console.print(table(folders))
        return
    with Live(table(folders), console=console, screen=True, auto_refresh=False) as live:
        while not stop.wait(seconds):
            folders.try_refresh()
            live.update(table(folders), refresh=True)


def states(folders: FollowedFolders) -> dict[str, dict[str, Any]]:
    """Return the status and the findings of each run, for JSON."""
    return {
        name: vars(followed.status) | {"findings": [vars(finding) for finding in findings(followed.run.metrics)]}
        for name, followed in folders.runs.items()
    }


def table(folders: FollowedFolders) -> RenderableType:
    """Return a table with each run's status and curves, and the findings below it."""
    shown = Table("run", *(heading for heading, _ in COLUMNS), title=folders.title, title_justify="left", expand=True)
    notes: list[Text] = []
    for name, followed in folders.runs.items():
        cells = [_cell(curve([followed.run], [metric])) for _, metric in COLUMNS]
        shown.add_row(Text(f"{followed.path.parent.name}/{followed.path.name}\n{followed.status.line}"), *cells)
        for found in findings(followed.run.metrics):
            notes.append(Text(f"{name}: {found.title}: {found.evidence}. What helps: {found.remedy}."))
    return Group(shown, *notes)


def _cell(values: Curve | None) -> Text:
    if values is None:
        return Text("")
    return Text(f"{number_text(values.mean[-1])}\n{sparkline(values.mean)}")


def sparkline(values: list[float], width: int = WIDTH) -> str:
    """Draw numbers as bars of eight heights, from the lowest to the highest; of many, show the last of every few."""
    step = -(-len(values) // width)
    kept = values[::-1][::step][::-1]
    low, high = min(kept), max(kept)
    return "".join(BARS[int((value - low) / (high - low) * 7.999) if high > low else 3] for value in kept)
