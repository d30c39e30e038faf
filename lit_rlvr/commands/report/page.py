"""`lit-rlvr report`: builds self-contained HTML pages about groups of runs from `templates/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_rlvr import __version__
from lit_rlvr.commands.report.charts import (
    BOTTOM,
    CHART_HEIGHT,
    CHART_WIDTH,
    LEFT,
    RIGHT,
    TOP,
    chart,
    more_panels,
    panels,
)
from lit_rlvr.commands.report.closeup import close_up, shorten, turns_of
from lit_rlvr.commands.report.groups import RunGroup, read_groups
from lit_rlvr.commands.report.render import render, write_page
from lit_rlvr.commands.report.runs import differences, main_settings
from lit_rlvr.commands.report.tables import RUN_COLUMNS, results_table, run_rows, validation_rows
from lit_rlvr.common.terminal import show_result
from lit_rlvr.configs import Parser
from lit_rlvr.run.advice import RunHistory
from lit_rlvr.run.health.findings import findings
from lit_rlvr.run.health.progress import progress

COLOURS = 8
"""Number of colours in the style sheet; further groups get dashed lines."""


def run_command(command: str, arguments: list[str]) -> None:
    """Run the command line of `report`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=write_report.__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or folders of studies")
    parser.add_argument(
        "--out",
        type=str,
        default=None,
        help="page to write; default: report.html, in the folder if only one is given",
    )
    config = parser.parse_args(arguments)
    path = write_report(config.runs, config.out)
    show_result({"page": str(path)}, lambda: print(f"Page: {path}"))


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about runs: accuracies, curves, prompts, completions, tokens, settings.

    The page groups runs that differ only by seed, and shows their curves as a mean with a band.

    Args:
        runs: folders of runs or of studies.
        out: the page; by default `report.html`, in the folder if only one is given.

    Raises:
        UserError: a folder holds no run, or the page cannot be written.
    """
    folders = [Path(run) for run in runs]
    if out is not None:
        target = Path(out)
    else:
        target = (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_page(target, report_page(*read_groups(folders)), "--out")
    return target


def report_page(title: str, groups: Sequence[RunGroup]) -> str:
    """Return the HTML of a report.

    Args:
        title: title of the page.
        groups: groups of runs, with groups to compare next to each other.
    """
    close_ups = []  # first, because it adds notes on unreadable files
    for group in groups:
        close_ups.append(close_up(group))
    return render(
        "report.html", title=title, **contents(groups), close_ups=close_ups, shorten=shorten, turns_of=turns_of
    )


def _style(number: int) -> str:
    """Return the classes of the curves with a number: a colour, and dashes once all colours are used."""
    style = f"s{number % COLOURS}"
    if number >= COLOURS:
        style += " dashed"
    return style


def contents(groups: Sequence[RunGroup], all_curves: bool = True) -> dict[str, Any]:
    """Return the values for `templates/sections.html`: results, curves, validation and settings of groups of runs.

    Args:
        groups: the groups of runs on the page.
        all_curves: whether to draw the less important curves too.
    """
    names = list(dict.fromkeys(group.name for group in groups))
    tasks = list(dict.fromkeys(group.task for group in groups))
    legends = []
    for k, group in enumerate(groups):
        label = group.name if len(tasks) == 1 else f"{group.name} on {group.task}"
        legends.append({"number": k, "name": group.name, "label": label, "style": _style(names.index(group.name))})
    configured = []
    settings = []
    for group, legend in zip(groups, legends, strict=True):
        if group.settings:
            configured.append(legend["label"])
            settings.append(group.settings)
    histories = []
    for group in groups:
        for run in group.runs:
            histories.append((run, RunHistory.of_config(run.config)))
    charts_of_tasks = []
    for name in tasks:
        charts_of_tasks.append(_task(name, groups, legends, all_curves))
    return dict(
        version=__version__,
        groups=groups,
        legends=legends,
        several=any(len(group.runs) > 1 for group in groups),
        problems=[problem for group in groups for problem in group.problems],
        configured=configured,
        main=main_settings(settings),
        differences=differences(settings),
        tasks=charts_of_tasks,
        run_columns=RUN_COLUMNS,
        run_rows=run_rows(groups),
        health=[(run, findings(run.metrics, history)) for run, history in histories],
        learnt=[(run, progress(run.metrics, history)) for run, history in histories],
        box={
            "width": CHART_WIDTH,
            "height": CHART_HEIGHT,
            "left": LEFT,
            "right": CHART_WIDTH - RIGHT,
            "top": TOP,
            "bottom": CHART_HEIGHT - BOTTOM,
        },
    )


def _task(name: str, groups: Sequence[RunGroup], legends: Sequence[dict[str, Any]], all_curves: bool) -> dict[str, Any]:
    """Return the results, curves and validation of the groups that are compared with each other."""
    chosen = []
    for group, legend in zip(groups, legends, strict=True):
        if group.task == name:
            chosen.append(legend)
    members = []
    for legend in chosen:
        members.append(groups[legend["number"]])
    numbers = [legend["number"] for legend in chosen]
    columns, rows = results_table(members)
    return dict(
        name=name,
        legends=chosen,
        columns=columns,
        results=rows,
        charts=[chart(*panel, numbers) for panel in panels(members)],
        more=[chart(*panel, numbers) for panel in more_panels(members)] if all_curves else [],
        validation=validation_rows(members),
    )
