"""`lit-rlvr explain RUN`: shows one group, from rewards to advantages to each token's ratio, clip and weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from lit_rlvr.commands.report.prompts import verdict_text
from lit_rlvr.commands.report.render import added_uris, image_uris, render, write_page
from lit_rlvr.common.run_files import list_traces, read_trace, trace_folder
from lit_rlvr.common.terminal import Terminal, show_result, table_of
from lit_rlvr.configs import Parser
from lit_rlvr.errors import UserError
from lit_rlvr.speech.thoughts import ends_in_thoughts, without_thoughts

SavedGroups = tuple[int, str, list[dict[str, Any]]]
"""Step, algorithm and groups of a saved rollout."""


def run_command(command: str, arguments: list[str]) -> None:
    """Run the command line of `explain`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__)
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--step", type=int, default=None, help="a saved step; default: the last with a gradient")
    parser.add_argument(
        "--prompt", type=str, default=None, help="a saved prompt, by number or id; default: the first with a gradient"
    )
    parser.add_argument("--html", type=str, default=None, help="page to write; default: RUN/explain.html")
    config = parser.parse_args(arguments)
    folder = Path(config.run)
    step, algorithm, group = load_group(folder, config.step, config.prompt)
    target = Path(config.html or folder / "explain.html")

    def print_text() -> None:
        show_group(step, algorithm, group)
        if not has_gradient(group):
            Terminal().print("Advantages give this group no gradient: all of them, or all weights, are 0.")
        Terminal().print(f"\nPage: {target}", soft_wrap=True)

    write_page(target, group_page(step, algorithm, group, image_uris(folder, group), folder), "--html")
    show_result({"step": step, "algorithm": algorithm, "group": group, "page": str(target)}, print_text)


def load_group(run_folder: Path, step: int | None, prompt: str | None) -> tuple[int, str, dict[str, Any]]:
    """Load a saved group: (step, algorithm, group).

    By default it is one with a gradient, from the newest step that has one; if none has a gradient, one of the newest
    step.

    Raises:
        UserError: the run saved no rollouts or not this step or prompt (the message lists the saved ones), or a file is
            broken.
    """
    files = list_traces(run_folder)
    if not files:
        folder = trace_folder(run_folder)
        raise UserError(f"{folder} holds no rollout; give the folder of a run with run.trace_every above 0")
    if step is not None and step not in files:
        raise UserError(f"--step: {step} was not saved; saved steps: {', '.join(map(str, files))}")
    saved = ((k, *read_trace(files[k])) for k in (sorted(files, reverse=True) if step is None else [step]))
    if prompt is not None:
        chosen, algorithm, groups = next(saved)
        by_name = {str(k): group for k, group in enumerate(groups)} | {group["id"]: group for group in groups}
        if prompt not in by_name:
            raise UserError(f"--prompt: {prompt!r} was not saved at step {chosen}; there are {', '.join(by_name)}")
        return chosen, algorithm, by_name[prompt]
    newest = next(saved)
    return first_with_gradient(chain([newest], saved)) or (*newest[:2], newest[2][0])


def first_with_gradient(saved: Iterable[SavedGroups]) -> tuple[int, str, dict[str, Any]] | None:
    """Return (step, algorithm, group) of the first saved group that had a gradient."""
    for step, algorithm, groups in saved:
        for group in filter(has_gradient, groups):
            return step, algorithm, group
    return None


def has_gradient(group: dict[str, Any]) -> bool:
    """Return whether a saved group has a gradient on any of its tokens."""
    for completion in group["completions"]:
        if completion["advantage"] and any(completion.get("weight", [])):
            return True
    return False


def show_group(step: int, algorithm: str, group: dict[str, Any]) -> None:
    """Print the group in the terminal as a table; the page has its tokens."""
    console = Terminal()
    console.print(f"{algorithm}, step {step}, prompt {group['id']}; answer {group['answer']}\n", style="bold")
    console.print(group["prompt"])
    headings = (column.replace(" ", "\n") for column in COMPLETION_COLUMNS)
    rows = []
    for g, completion in enumerate(group["completions"]):
        rows.append((str(g), *cells(completion)))
    console.print_table(table_of(("g", *headings), rows, title="\nFrom reward to weight"))
    numbers = [row[0] for row in rows]
    criteria = criteria_rows(group["completions"])
    if criteria:
        console.print_table(table_of(("criterion", *numbers), criteria, title="\nScores by criterion"))
    turn_rewards = turn_reward_rows(group["completions"])
    if turn_rewards:
        console.print_table(table_of(("turn", *numbers), turn_rewards, title="\nRewards of turns"))
    calls = call_rows(dict(enumerate(group["completions"])))
    if calls:
        console.print_table(table_of(CALL_COLUMNS, calls, title="\nCalls of the agents, in their order"))


LONGEST_OPENING = 40
"""Most characters at the end of a prompt that may open thoughts."""
OBSERVED = "observed, not trained on"
CALL_COLUMNS = ("completion", "call", "sequence", "tokens", "tokens added before", "reward")
COMPLETION_COLUMNS = ("reward", "correct", "advantage", "tokens", "mean ratio", "clipped", "sum of weights", "status")


def cells(completion: dict[str, Any]) -> list[str]:
    """Return one completion's row of the table."""
    is_sampled = _sampled_mask(completion)
    ratio = []
    for value, sampled in zip(completion.get("ratio", []), is_sampled, strict=False):
        if sampled:
            ratio.append(value)
    weight = completion.get("weight", [])
    judgement = verdict_text(completion)
    return [
        _number(completion["reward"], ".3f"),
        {"correct": "yes", "wrong": "no"}.get(judgement, judgement),
        _number(completion["advantage"], "+.3f"),
        str(sum(is_sampled)),
        f"{sum(ratio) / len(ratio):.4f}" if ratio else "not run",
        str(sum(is_clipped for _, _, is_clipped, _ in token_details(completion))),
        f"{sum(weight):+.3g}" if weight else "0",
        completion["status"] if completion["finish_reason"] == "stop" else f"{completion['status']}/cut",
    ]


def _number(value: float | None, form: str) -> str:
    if value is None:
        return "none"
    return format(value, form)


def criteria_rows(completions: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the criteria of a rubric, or the measures of places, each with its score of every completion."""
    scores = []
    for completion in completions:
        scores.append(completion.get("criteria", {}))
    rows = []
    for name in dict.fromkeys(chain(*scores)):
        texts = []
        for given in scores:
            texts.append(f"{given[name]:.3g}" if name in given else "")
        rows.append((name, *texts))
    return rows


def turn_reward_rows(completions: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the turns, each with its reward in every completion; none if no turn has a reward."""
    rewards = []
    for completion in completions:
        rewards.append(completion.get("turn_rewards", []))
    rows = []
    for k in range(max(map(len, rewards), default=0)):
        given = []
        for own in rewards:
            given.append(own[k] if k < len(own) else None)
        rows.append((str(k), *("" if reward is None else f"{reward:g}" for reward in given)))
    return rows


def call_rows(completions: Mapping[int, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row for each call of an agent, of completions by number, and behind these those that are not trained."""
    rows: list[tuple[str, ...]] = []
    for g, completion in completions.items():
        rewards = completion.get("turn_rewards", [])
        for k, call in enumerate(completion.get("calls", [])):
            if "untrained" in call:
                rows.append((str(g), call["untrained"], "not trained", str(call["tokens"]), "", ""))
                continue
            reward = rewards[k] if rewards else None
            paid = "" if reward is None else f"{reward:g}"
            rows.append((str(g), str(k), str(call["sequence"]), str(call["tokens"]), str(call["added"]), paid))
    return rows


def token_details(completion: dict[str, Any]) -> list[tuple[str, float, bool, str]]:
    """Return (token, weight in the gradient of logp, clipped, all numbers as text) of each token."""
    details = [(0.0, False, "not run")] * len(completion["tokens"])  # the trainer skips a group without a gradient
    if completion.get("weight") and completion.get("ratio"):
        own = completion.get("token_advantage")
        advantages = own or [completion["advantage"]] * len(completion["tokens"])
        columns = zip(completion["weight"], completion["ratio"], completion["logp"], advantages, strict=True)
        details = []
        for weight, ratio, logp, advantage in columns:
            numbers = f"weight {weight:+.3g}, ratio {ratio:.4f}, log-probability {logp:.3f}"
            if own:
                numbers += f", advantage {advantage:+.3f}"
            details.append((weight, bool(advantage) and weight == 0, numbers))
    rows = []
    for token, sampled, detail in zip(completion["tokens"], _sampled_mask(completion), details, strict=True):
        if not sampled:
            detail = (0.0, False, OBSERVED)
        rows.append((token, *detail))
    return rows


def _sampled_mask(completion: dict[str, Any]) -> list[bool]:
    """Return for each token whether the model sampled it."""
    return completion.get("sampled") or [True] * len(completion["tokens"])


def view(
    group: dict[str, Any],
    indices: Sequence[int] | None = None,
    limit: int | None = None,
    run_folder: Path | None = None,
) -> dict[str, Any]:
    """Return the data of a group that `templates/weights.html` shows.

    Args:
        group: the saved group.
        indices: indices of the completions to show; None = all.
        limit: the most tokens of each; None = all.
        run_folder: the run folder, which has the thumbnails of images that were added to completions; None = show none.
    """
    completions = group["completions"]
    numbers = range(len(completions)) if indices is None else indices
    weights = chain(*(completion.get("weight", []) for completion in completions))
    largest = max(map(abs, weights), default=0.0) or 1.0
    shown = []
    for g in numbers:
        completion = _completion_view(group["prompt"], g, completions[g], largest, limit)
        completion["uris"] = []
        if run_folder is not None:
            completion["uris"] = added_uris(run_folder, completions[g])
        shown.append(completion)
    return {
        "id": group["id"],
        "prompt": group["prompt"],
        "answer": group["answer"],
        "columns": COMPLETION_COLUMNS,
        "criteria": criteria_rows([completions[g] for g in numbers]),
        "turn_rewards": turn_reward_rows([completions[g] for g in numbers]),
        "call_columns": CALL_COLUMNS,
        "calls": call_rows({g: completions[g] for g in numbers}),
        "observed": any("sampled" in completion for completion in completions),
        "completions": shown,
    }


def _completion_view(
    prompt: str, number: int, completion: dict[str, Any], largest: float, limit: int | None
) -> dict[str, Any]:
    thoughts = 0
    if "sampled" not in completion:
        thoughts = _thought_tokens(prompt, completion["tokens"])
    more = 0
    if limit is not None:
        more = len(completion["tokens"][limit:])
    tokens = []
    for token in token_details(completion)[:limit]:
        tokens.append(_token_view(*token, largest))
    return {"number": number, "cells": cells(completion), "thought": thoughts, "tokens": tokens, "more": more}


def _thought_tokens(prompt: str, tokens: Sequence[str]) -> int:
    """Return how many tokens of a completion are its thoughts, with their marks."""
    text = "".join(tokens)
    begun = "<think>" if ends_in_thoughts(prompt[-LONGEST_OPENING:]) else ""
    answer = without_thoughts(begun + text)
    thoughts = len(text) - len(answer) if text.endswith(answer) else 0
    return sum(end <= thoughts for end in accumulate(map(len, tokens)))


def _token_view(text: str, weight: float, clipped: bool, numbers: str, scale: float) -> dict[str, str]:
    if numbers == OBSERVED:
        return {"text": text, "kind": "observed", "strength": "0", "numbers": numbers}
    if clipped:
        kind = "clip"
    elif weight > 0:
        kind = "up"
    elif weight < 0:
        kind = "down"
    else:
        kind = ""
    return {"text": text, "kind": kind, "strength": f"{0.75 * abs(weight) / scale:.3g}", "numbers": numbers}


def group_page(
    step: int, algorithm: str, group: dict[str, Any], uris: Sequence[str] = (), run_folder: Path | None = None
) -> str:
    """Return the group as one self-contained HTML page, with its prompt's images, given as data URIs.

    Args:
        step: the step of the saved rollout.
        algorithm: name of the algorithm.
        group: the group, as `load_group` returns it.
        uris: the images of its prompt as data URIs.
        run_folder: the run folder, which has the thumbnails of images that were added to completions; None = show none.
    """
    return render(
        "explain.html",
        title=f"{algorithm}, step {step}, prompt {group['id']}",
        group=view(group, run_folder=run_folder),
        uris=uris,
        completions=group["completions"],
    )
