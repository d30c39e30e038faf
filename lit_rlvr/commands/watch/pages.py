"""The pages of `lit-rlvr watch`, rendered from `follow.py`'s folders."""

from __future__ import annotations

from typing import Any

from lit_rlvr.commands.report.closeup import shorten, turns_of
from lit_rlvr.commands.report.explain import view
from lit_rlvr.commands.report.page import contents
from lit_rlvr.commands.report.prompts import OUTCOMES, Completions, TrackedPrompt, Visit
from lit_rlvr.commands.report.render import image_uris, render
from lit_rlvr.commands.watch.follow import FollowedFolders, FollowedRun
from lit_rlvr.common.run_files import list_traces, read_trace
from lit_rlvr.errors import UserError

PER_PAGE = 50
"""The most prompts on a page of the table."""
MOST_BARS = 40
"""The most bars of a prompt in the table; with more visits, several share a bar."""
MOST_VISITS = 400
"""The most links to earlier visits on a prompt's page."""

ORDERS = {
    "last visit": lambda prompt: -prompt.visits[-1].step,
    "accuracy now": lambda prompt: prompt.visits[-1].share,
    "gain": lambda prompt: prompt.visits[0].share - prompt.visits[-1].share,
    "visits": lambda prompt: -len(prompt.visits),
    "id": lambda prompt: prompt.id,
}
"""Order of the table of prompts -> sort key."""


class NotFound(Exception):
    """Raised if there is no such run, prompt or step."""


def overview(folders: FollowedFolders, more: bool) -> str:
    """Render findings, results, curves and settings of all runs; `more` adds curves of all other metrics."""
    unreadable = [note for group in folders.groups for note in group.unreadable]
    shown = contents(folders.groups, more) | {"problems": unreadable}  # `watch_now.html` shows how each run ended
    frame = _frame(folders) | {"follows": "metrics", "at_version": folders.versions["metrics"]}
    return render("watch_overview.html", **frame, title=folders.title, more=more, **shown)


def now(folders: FollowedFolders) -> str:
    """Render the part of every page that shows the state of the runs."""
    return render("watch_now.html", runs=_states(folders), unread=folders.unread)


def prompts(folders: FollowedFolders, run: str, outcome: str, order: str, words: str, number: int) -> str:
    """Render a table of prompts.

    Args:
        outcome: one of `OUTCOMES`; "" = all.
        order: one of `ORDERS`.
        words: text that the prompt, answer or id contains.
        number: the page, from 1.
    """
    followed = _find_run(folders, run)
    outcomes = [(prompt, prompt.outcome) for prompt in followed.completions.prompts.values()]
    counts = {name: sum(own == name for _, own in outcomes) for name in OUTCOMES}
    chosen = [prompt for prompt, own in outcomes if outcome in ("", own)]
    found = [p for p in chosen if words.casefold() in f"{p.id}\n{p.text}\n{p.answer}".casefold()]
    found.sort(key=ORDERS.get(order, ORDERS["last visit"]))
    pages = max(1, -(-len(found) // PER_PAGE))
    number = min(max(number, 1), pages)
    shown = found[(number - 1) * PER_PAGE : number * PER_PAGE]
    return render(
        "watch_prompts.html", **_frame(folders), title=f"Prompts of {run}", run=run, counts=counts, outcome=outcome,
        order=order if order in ORDERS else "last visit", orders=list(ORDERS), words=words, number=number, pages=pages,
        found=len(found), rows=[(prompt, _bars(prompt.visits)) for prompt in shown], index=followed.completions,
    )  # fmt: skip


def prompt(folders: FollowedFolders, run: str, name: str, step: int | None) -> str:
    """Render a prompt's group at a step, by default the last, with links to its other visits."""
    followed = _find_run(folders, run)
    tracked, visit, rows = _find_visit(followed.completions, name, step)
    visits = tracked.visits[-MOST_VISITS:]
    return render(
        "watch_prompt.html", **_frame(folders), title=f"Prompt {name}", run=run, tracked=tracked, visit=visit,
        rows=rows, visits=visits, left_out=len(tracked.visits) - len(visits), uris=image_uris(followed.path, rows[0]),
        traced=sorted(set(list_traces(followed.path)) & {past.step for past in tracked.visits}),
        turns_of=turns_of, shorten=shorten,
    )  # fmt: skip


def completion_page(folders: FollowedFolders, run: str, name: str, step: int, sample: int) -> str:
    """Render one completion of a group: its tokens by weight if its step was traced, else its rewards."""
    followed = _find_run(folders, run)
    tracked, visit, rows = _find_visit(followed.completions, name, step)
    row = next((row for row in rows if row["sample"] == sample), None)
    if row is None:
        raise NotFound(f"prompt {name} has no completion {sample} at step {step}")
    traces = list_traces(followed.path)
    group, problem = None, ""
    if step in traces:
        try:
            group = next((group for group in read_trace(traces[step])[1] if group["id"] == name), None)
        except UserError as error:
            problem = str(error)
    shown = view(group, [sample]) if group is not None and sample < len(group["completions"]) else None
    return render(
        "watch_tokens.html", **_frame(folders), title=f"Completion {sample} of {name}, step {step}", run=run,
        tracked=tracked, visit=visit, rows=rows, row=row, group=shown, problem=problem, turns_of=turns_of,
        traced=sorted(set(traces) & {past.step for past in tracked.visits}),
    )  # fmt: skip


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
    return [(name, run.status, len(run.completions.prompts)) for name, run in folders.runs.items()]


def _find_run(folders: FollowedFolders, name: str) -> FollowedRun:
    if name not in folders.runs:
        raise NotFound(f"no run {name} is followed")
    return folders.runs[name]


def _find_visit(
    completions: Completions, name: str, step: int | None
) -> tuple[TrackedPrompt, Visit, list[dict[str, Any]]]:
    tracked = completions.prompts.get(name)
    if tracked is None:
        raise NotFound(f"prompt {name} was not sampled")
    visit = next((visit for visit in reversed(tracked.visits) if step in (None, visit.step)), None)
    if visit is None or not (rows := completions.read_group(visit)):
        raise NotFound(f"prompt {name} was not sampled at step {step}")
    return tracked, visit, rows


def _bars(visits: list[Visit]) -> list[tuple[float, str]]:
    """Return a prompt's visits as bars, each with its height from 0 to 1 and a description; of many visits, several
    share a bar."""
    width = -(-len(visits) // MOST_BARS)
    return [_bar(visits[first : first + width]) for first in range(0, len(visits), width)]


def _bar(visits: list[Visit]) -> tuple[float, str]:
    right, judged = sum(past.right for past in visits), sum(past.judged for past in visits)
    first, last = visits[0].step, visits[-1].step
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    return right / max(judged, 1), f"{steps}: {right} of {judged}"
