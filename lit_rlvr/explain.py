"""`lit-rlvr explain RUN`: one group, from rewards to advantages to each token's ratio, clip and weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_rlvr.errors import UserError
from lit_rlvr.pages import render
from lit_rlvr.run.trace import list_traces, read_trace, trace_folder
from lit_rlvr.text import printable


def run(command: str, arguments: list[str]) -> None:
    """The command line of `explain`."""
    parser = ArgumentParser(prog=f"lit-rlvr {command}", description=__doc__, exit_on_error=False)
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("--step", type=int, default=None, help="optimizer step after the rollout; the last saved one")
    parser.add_argument(
        "--prompt", type=str, default=None, help="which saved prompt: its number, or its id; the first with a gradient"
    )
    parser.add_argument("--html", type=str, default=None, help="page to write; RUN/explain.html")
    config = parser.parse_args(arguments)
    step, algorithm, group = load_group(Path(config.run), config.step, config.prompt)
    show(step, algorithm, group)
    target = Path(config.html or Path(config.run) / "explain.html")
    target.write_text(page(step, algorithm, group), encoding="utf-8")
    Console().print(f"\nPage: {target}", highlight=False, soft_wrap=True)


def load_group(run: Path, step: int | None, prompt: str | None) -> tuple[int, str, dict[str, Any]]:
    """A saved group: (step, algorithm, group).

    Raises:
        UserError: the run saved no rollouts, not this step or prompt (says which there are), or a broken file.
    """
    files = list_traces(run)
    if not files:
        raise UserError(f"{trace_folder(run)} holds no rollout; train with run.trace_every above 0")
    chosen = max(files) if step is None else step
    if chosen not in files:
        raise UserError(f"--step: {chosen} was not saved; saved steps: {', '.join(map(str, files))}")
    algorithm, groups = read_trace(files[chosen])
    if prompt is None:
        prompt = str(next((k for k, group in enumerate(groups) if has_weights(group)), 0))
    by_name = {str(k): group for k, group in enumerate(groups)} | {group["id"]: group for group in groups}
    if prompt not in by_name:
        raise UserError(f"--prompt: {prompt!r} was not saved at step {chosen}; there are {', '.join(by_name)}")
    return chosen, algorithm, by_name[prompt]


def has_weights(group: dict[str, Any]) -> bool:
    """Whether any of a saved group's completions was run: those without an advantage are not."""
    return any("weight" in completion for completion in group["completions"])


def show(step: int, algorithm: str, group: dict[str, Any]) -> None:
    """The group in the terminal: a table, then each completion with its tokens coloured by weight."""
    console = Console(highlight=False)
    heading = printable(f"{algorithm}, step {step}, prompt {group['id']}; answer {group['answer']}\n")
    console.print(Text(heading, style="bold"))
    console.print(Text(printable(group["prompt"])))
    table = Table("g", *COLUMNS, title="\nFrom reward to weight", title_justify="left")
    for g, completion in enumerate(group["completions"]):
        table.add_row(str(g), *cells(completion))
    console.print(table)
    scale = largest_weight(group)
    for g, completion in enumerate(group["completions"]):
        text = Text(f"[{g}] ", style="dim")
        for token, weight, clipped, _ in tokens(completion):
            strength = int(160 * abs(weight) / scale)
            colour = (0, 40 + strength, 0) if weight > 0 else (40 + strength, 0, 0)
            style = f"on rgb({colour[0]},{colour[1]},{colour[2]})" if weight else ""
            text.append(printable(token), style=f"{style} strike" if clipped else style)
        console.print(text)
    console.print(Text("green: made likelier, red: made less likely, struck out: clipped", style="dim"))


COLUMNS = ("reward", "correct", "advantage", "tokens", "mean ratio", "clipped", "sum of weights", "status")


def cells(completion: dict[str, Any]) -> list[str]:
    """One completion's row of the table."""
    ratio, weight = completion.get("ratio", []), completion.get("weight", [])
    clipped = sum(c for _, _, c, _ in tokens(completion))
    return [
        f"{completion['reward']:.3f}",
        "yes" if completion["correct"] else "no",
        f"{completion['advantage']:+.3f}",
        str(len(completion["tokens"])),
        f"{sum(ratio) / len(ratio):.4f}" if ratio else "not run",
        str(clipped),
        f"{sum(weight):+.3g}" if weight else "0",
        completion["status"] if completion["finish_reason"] == "stop" else f"{completion['status']}/cut",
    ]


def tokens(completion: dict[str, Any]) -> list[tuple[str, float, bool, str]]:
    """(token, weight in the gradient of logp, clipped, all numbers as text) of each token."""
    weights, ratios = completion.get("weight"), completion.get("ratio")
    if not weights or not ratios:  # a group without any gradient is not run
        return [(token, 0.0, False, "not run") for token in completion["tokens"]]
    rows = zip(completion["tokens"], weights, ratios, completion["logp"], strict=True)
    live = completion["advantage"] != 0
    return [
        (token, weight, live and weight == 0, f"weight {weight:+.3g}, ratio {ratio:.4f}, log-probability {logp:.3f}")
        for token, weight, ratio, logp in rows
    ]


def largest_weight(group: dict[str, Any]) -> float:
    """The largest |weight| of the group, for colours; 1 when all are 0."""
    return max([abs(w) for c in group["completions"] for w in c.get("weight", [])], default=0.0) or 1.0


def view(group: dict[str, Any], shown: Sequence[int] | None = None, limit: int | None = None) -> dict[str, Any]:
    """What `templates/weights.html` shows of a group.

    Args:
        group: as it was saved.
        shown: numbers of the completions, None = all; limit: tokens of each, None = all.
    """
    scale = largest_weight(group)
    completions = group["completions"]
    return {
        "id": group["id"],
        "prompt": group["prompt"],
        "answer": group["answer"],
        "columns": COLUMNS,
        "completions": [
            {
                "number": g,
                "cells": cells(completions[g]),
                "tokens": [_token_view(*token, scale) for token in tokens(completions[g])[:limit]],
                "more": len(completions[g]["tokens"][limit:]) if limit is not None else 0,
            }
            for g in (range(len(completions)) if shown is None else shown)
        ],
    }


def _token_view(text: str, weight: float, clipped: bool, numbers: str, scale: float) -> dict[str, str]:
    kind = "clip" if clipped else "up" if weight > 0 else "down" if weight < 0 else ""
    return {"text": text, "kind": kind, "strength": f"{0.75 * abs(weight) / scale:.3g}", "numbers": numbers}


def page(step: int, algorithm: str, group: dict[str, Any]) -> str:
    """The group as one self-contained HTML page."""
    return render("explain.html", title=f"{algorithm}, step {step}, prompt {group['id']}", group=view(group))
