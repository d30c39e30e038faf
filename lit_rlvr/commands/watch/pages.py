"""The pages of `lit-rlvr watch`, rendered from `follow.py`'s folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_rlvr.commands.report.closeup import turns_of
from lit_rlvr.commands.report.explain import view
from lit_rlvr.commands.report.page import contents
from lit_rlvr.commands.report.prompts import count_outcomes, list_prompts
from lit_rlvr.commands.report.render import added_uris, image_uris, render, small_uris
from lit_rlvr.commands.watch.follow import FollowedFolders, FollowedRun
from lit_rlvr.common.run_files import list_traces, read_trace
from lit_rlvr.errors import UserError

MOST_LISTED = 200
"""The most prompts in the table."""
MOST_VISITS = 400
"""The most links to earlier visits on a prompt's page."""


class NotFound(Exception):
    """Raised if there is no such run, prompt or step."""


def overview(folders: FollowedFolders, all_curves: bool) -> str:
    """Render findings, results, curves and settings of all runs; `all_curves` adds curves of all other metrics."""
    parts = (
        contents(folders.groups, all_curves)
        | _frame(folders)
        | {
            "follows": "metrics",
            "at_version": folders.versions["metrics"],
            "problems": [
                note for group in folders.groups for note in group.unreadable
            ],  # the frame shows how a run ended
        }
    )
    return render("watch_overview.html", title=folders.title, more=all_curves, **parts)


def now(folders: FollowedFolders) -> str:
    """Render the part of every page that shows the state of the runs."""
    return render("watch_now.html", runs=_states(folders), unread=folders.unread)


def prompts(folders: FollowedFolders, query: Mapping[str, str]) -> str:
    """Render a table of prompts of the `run` in a query, with its `outcome` and `words` as in `list_prompts`."""
    run = query.get("run", "")
    outcome = query.get("outcome", "")
    words = query.get("words", "")
    followed = _find_run(folders, run)
    index = followed.completions
    listed = list_prompts(index, outcome, words)
    rows = listed[:MOST_LISTED]
    return render(
        "watch_prompts.html",
        **_frame(folders),
        title=f"Prompts of {run}",
        run=run,
        counts=count_outcomes(index),
        outcome=outcome,
        words=words,
        found=len(listed),
        rows=rows,
        index=index,
        thumbnails=small_uris(followed.path, rows),
    )


def prompt(folders: FollowedFolders, query: Mapping[str, str]) -> str:
    """Render the group of a prompt at a step of a run, by default at its last.

    The page has the group's tokens if they were traced, and links to the prompt's other visits.
    """
    run = query.get("run", "")
    name = query.get("id", "")
    step = query.get("step")
    followed = _find_run(folders, run)
    tracked = followed.completions.prompts.get(name)
    if tracked:
        visit = next((past for past in reversed(tracked.visits) if step in (None, str(past.step))), None)
    else:
        visit = None
    rows = [] if visit is None else followed.completions.read_group(visit)
    if tracked is None or visit is None or not rows:
        raise NotFound(f"prompt {name} was not sampled" + ("" if step is None else f" at step {step}"))
    visits = tracked.visits[-MOST_VISITS:]
    traces = list_traces(followed.path)
    group = None
    problem = "Not saved: only the tokens of every run.trace_every-th rollout are."
    if visit.step in traces:
        try:
            group = next((group for group in read_trace(traces[visit.step])[1] if group["id"] == name), None)
        except UserError as error:
            problem = str(error)
    return render(
        "watch_prompt.html",
        **_frame(folders),
        title=f"Prompt {name}",
        run=run,
        tracked=tracked,
        visit=visit,
        rows=rows,
        visits=visits,
        left_out=len(tracked.visits) - len(visits),
        uris=image_uris(followed.path, rows[0]),
        added=[added_uris(followed.path, row) for row in rows],
        traced={*traces},
        group=group and view(group, run_folder=followed.path),
        problem=problem,
        turns_of=turns_of,
        shorten=str,
    )


def _frame(folders: FollowedFolders) -> dict[str, Any]:
    """Return the values for every page."""
    return {
        "follows": "completions",
        "at_version": folders.versions["completions"],
        "runs": _states(folders),
        "unread": folders.unread,
    }


def _states(folders: FollowedFolders) -> list[tuple[str, Any, int]]:
    """Return (folder, status, number of visited prompts) of every run."""
    states = []
    for name, run in folders.runs.items():
        states.append((name, run.status, len(run.completions.prompts)))
    return states


def _find_run(folders: FollowedFolders, name: str) -> FollowedRun:
    if name not in folders.runs:
        raise NotFound(f"no run {name} is followed")
    return folders.runs[name]
