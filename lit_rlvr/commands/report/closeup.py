"""Details of one group of runs: its prompts, completions, images, and the weights of some tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rlvr.commands.report.explain import SavedGroups, first_with_gradient, view
from lit_rlvr.commands.report.groups import RunGroup
from lit_rlvr.commands.report.prompts import (
    MOST_PROMPTS,
    History,
    Visit,
    hardest,
    histories,
    index_completions,
    newly_solved,
    samples,
)
from lit_rlvr.commands.report.render import image_uris
from lit_rlvr.commands.report.runs import RunRecord
from lit_rlvr.common.files import Fields, has_fields
from lit_rlvr.common.run_files import list_traces, read_trace
from lit_rlvr.errors import UserError

MOST_CHARACTERS, MOST_TOKENS, MOST_COMPLETIONS = 1600, 400, 4
"""The most characters and tokens of a completion, and completions of a group, that the page shows."""
TURN: Fields = {"text": str, "observation": (str, type(None))}
"""A turn of an episode in completions.jsonl."""


@dataclass(frozen=True)
class CloseUp:
    """Details of a group on the page, in addition to its numbers.

    Args:
        seen: number of sampled prompts; visited_again: number of those that a run sampled more than once.
        hardest, newly_solved: the first prompts of each kind; hard, solved: their numbers.
        seed: seed of the run that samples and tokens come from.
        samples: (visit, completions, images as URIs) of sampled groups: all completions, or those with the highest and
            lowest rewards.
        saved: number of its saved rollouts; tokens: (step, algorithm, `view` of `commands/report/explain.py`) of an
            early and a late one.
    """

    seen: int
    visited_again: int
    hardest: list[History]
    hard: int
    newly_solved: list[History]
    solved: int
    seed: str
    samples: list[tuple[Visit, list[dict[str, Any]], list[str]]]
    saved: int
    tokens: list[tuple[int, str, dict[str, Any]]]


def close_up(group: RunGroup) -> CloseUp:
    """Collect the details of a group, and add notes on unreadable completions and rollouts to it."""
    pairs = [(run, index_completions(run)) for run in group.runs]
    prompts = histories(index for _, index in pairs)
    hard, solved = hardest(prompts), newly_solved(prompts)
    run, index = next((pair for pair in pairs if pair[1].rows), pairs[0]) if pairs else (None, None)
    groups = [(visit, index.read_group(visit)) for visit in samples(index)] if index else []
    shown = [(visit, [rows[g] for g in extremes([row["reward"] for row in rows])], image_uris(run.path, rows[0]))
             for visit, rows in groups if run and rows]  # fmt: skip
    return CloseUp(
        seen=len(prompts),
        visited_again=sum(prompt.count > len(prompt.runs) for prompt in prompts),
        hardest=hard[:MOST_PROMPTS],
        hard=len(hard),
        newly_solved=solved[:MOST_PROMPTS],
        solved=len(solved),
        seed=run.seed if run else "",
        samples=shown,
        saved=len(list_traces(run.path)) if run else 0,
        tokens=_tokens(run) if run else [],
    )


def extremes(rewards: Sequence[float]) -> list[int]:
    """Choose the completions of a group to show, from the highest to the lowest reward.

    They are half of `MOST_COMPLETIONS` each with the highest and lowest rewards, or all of a small group.
    """
    ranked = sorted(range(len(rewards)), key=lambda g: -rewards[g])
    half = MOST_COMPLETIONS // 2
    return ranked if len(ranked) <= MOST_COMPLETIONS else ranked[:half] + ranked[-half:]


def turns_of(row: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Return (completion, observation) of each turn; without an environment, the completion alone."""
    turns = row.get("turns")
    if not isinstance(turns, list) or not all(has_fields(turn, TURN) for turn in turns):
        return [(row["completion"], None)]
    return [(turn["text"], turn["observation"]) for turn in turns]


def shorten(text: str) -> str:
    """Return the beginning and end of a long text, with the number of characters in between."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} more characters ...\n{text[-half:]}"


def _tokens(run: RunRecord) -> list[tuple[int, str, dict[str, Any]]]:
    """Return a group with a gradient from the first saved rollout that has one, and from the last."""
    files = sorted(list_traces(run.path).items())
    ends = [first_with_gradient(_readable(run, order)) for order in (files, files[::-1])]
    return [
        (step, algorithm, view(group, extremes([c["reward"] for c in group["completions"]]), MOST_TOKENS))
        for step, algorithm, group in {found[0]: found for found in ends if found is not None}.values()
    ]


def _readable(run: RunRecord, files: list[tuple[int, Path]]) -> Iterator[SavedGroups]:
    """Yield the saved rollouts, and note in the run which files cannot be read."""
    for step, path in files:
        try:
            yield step, *read_trace(path)
        except UserError as error:
            if str(error) not in run.notes:
                run.notes.append(str(error))
