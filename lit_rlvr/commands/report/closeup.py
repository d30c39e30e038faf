"""Details of one group of runs: its prompts, completions, images, and the weights of some tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_rlvr.commands.report.explain import SavedGroups, first_with_gradient, view
from lit_rlvr.commands.report.groups import RunGroup
from lit_rlvr.commands.report.prompts import (
    count_outcomes,
    index_completions,
    list_prompts,
    samples,
)
from lit_rlvr.commands.report.render import added_uris, image_uris, small_uris
from lit_rlvr.commands.report.runs import RunRecord
from lit_rlvr.common.run_files import list_traces, read_trace
from lit_rlvr.errors import UserError

MOST_CHARACTERS, MOST_TOKENS, MOST_COMPLETIONS, MOST_PROMPTS = 1600, 400, 4, 20
"""The most characters and tokens of a completion, completions of a group, and prompts that the page shows."""


def close_up(group: RunGroup) -> dict[str, Any]:
    """Collect the details of a group for `templates/closeup.html`.

    Notes on unreadable completions and rollouts are added to it.

    Returns:
        `seed`: seed of the run that it shows, the first with completions; `outcomes`: outcome -> number of the run's
        sampled prompts; `prompts`: the first of them, in that order; `thumbnails`: their pictures, by id; `samples`:
        (visit, completions, images as URIs, those added to each completion) of sampled groups: all completions, or
        those with the highest and lowest rewards; `saved`: number of its saved rollouts; `tokens`: (step, algorithm,
        `view` of `commands/report/explain.py`) of an early and a late one.
    """
    pairs = [(run, index_completions(run)) for run in group.runs]
    if not pairs:
        return dict(seed="", outcomes={}, prompts=[], thumbnails={}, samples=[], saved=0, tokens=[])
    run, index = next((pair for pair in pairs if pair[1].rows), pairs[0])
    shown = []
    for visit in samples(index):
        rows = index.read_group(visit)
        if rows:
            numbers = extremes([row["reward"] for row in rows])
            chosen = [rows[g] for g in numbers]
            shown.append((visit, chosen, image_uris(run.path, rows[0]), [added_uris(run.path, row) for row in chosen]))
    prompts = list_prompts(index)[:MOST_PROMPTS]
    return dict(
        seed=run.seed,
        outcomes=count_outcomes(index),
        prompts=prompts,
        thumbnails=small_uris(run.path, prompts),
        samples=shown,
        saved=len(list_traces(run.path)),
        tokens=_tokens(run),
    )


def extremes(rewards: Sequence[float | None]) -> list[int]:
    """Choose the completions of a group to show, from the highest to the lowest reward, then those without one.

    They are half of `MOST_COMPLETIONS` each with the highest and lowest rewards, or all of a small group.
    """
    known = {}
    for g, reward in enumerate(rewards):
        if reward is not None:
            known[g] = reward
    ranked = sorted(known, key=lambda g: -known[g])
    for g in range(len(rewards)):
        if g not in known:
            ranked.append(g)
    half = MOST_COMPLETIONS // 2
    if len(ranked) <= MOST_COMPLETIONS:
        return ranked
    return ranked[:half] + ranked[-half:]


def turns_of(row: dict[str, Any]) -> list[tuple[str, str | None, float | None]]:
    """Return (completion, observation, reward) of each turn; without an environment, the completion alone."""
    turns = row.get("turns")
    if turns:
        rows = []
        for turn in turns:
            rows.append((turn["text"], turn["observation"], turn.get("reward")))
        return rows
    return [(row["completion"], None, None)]


def shorten(text: str) -> str:
    """Return the beginning and end of a long text, with the number of characters in between."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} more characters ...\n{text[-half:]}"


def _tokens(run: RunRecord) -> list[tuple[int, str, dict[str, Any]]]:
    """Return a group with a gradient from the first saved rollout that has one, and from the last."""
    files = sorted(list_traces(run.path).items())
    by_step = {}
    for order in (files, files[::-1]):
        end = first_with_gradient(_readable(run, order))
        if end is not None:
            step, algorithm, group = end
            numbers = extremes([completion["reward"] for completion in group["completions"]])
            by_step[step] = (step, algorithm, view(group, numbers, MOST_TOKENS, run.path))
    return list(by_step.values())


def _readable(run: RunRecord, files: list[tuple[int, Path]]) -> Iterator[SavedGroups]:
    """Yield the saved rollouts, and note in the run which files cannot be read."""
    for step, path in files:
        try:
            yield step, *read_trace(path)
        except UserError as error:
            if str(error) not in run.notes:
                run.notes.append(str(error))
