"""The history of single prompts in a run: the hardest, the newly solved, and sample completions.

It covers the prompts that a run saved to completions.jsonl (`run.save_prompts` of each rollout).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lit_rlvr.commands.report.runs import RunRecord, verdict_text

MOST_PROMPTS = 10
"""The most rows in the tables of prompts."""


@dataclass(frozen=True)
class Visit:
    """One prompt's group of completions in one rollout, as rows of completions.jsonl."""

    step: int
    id: str
    rows: list[dict[str, Any]]

    @property
    def right(self) -> int:
        return sum(verdict_text(row) == "correct" for row in self.rows)

    @property
    def judged(self) -> int:
        """Number of completions known to be right or wrong."""
        return sum(verdict_text(row) in ("correct", "wrong") for row in self.rows)

    @property
    def score(self) -> str:
        return f"{self.right} of {self.judged}"

    @property
    def has_gradient(self) -> bool:
        """True if the group had a gradient."""
        return any(row["advantage"] for row in self.rows)

    @property
    def prompt(self) -> str:
        return prompt_text(self.rows[0]["prompt"])

    @property
    def answer(self) -> str:
        return str(self.rows[0]["answer"])


@dataclass(frozen=True)
class History:
    """A prompt in all runs of a group: each run's visits in order."""

    id: str
    visits: list[list[Visit]]

    @property
    def wrong_visits(self) -> int:
        """Number of visits since a run last solved it; 0 unless every run ended without solving it."""
        tails = [_tail(visits) for visits in self.visits]
        return sum(tails) if all(tails) else 0

    @property
    def solved_by(self) -> list[list[Visit]]:
        """The visits of the runs that did not solve it at first, and solved it at the end."""
        judged = [(visits, [visit for visit in visits if visit.judged]) for visits in self.visits]
        return [visits for visits, known in judged if known and known[0].right == 0 and known[-1].right > 0]

    @property
    def count(self) -> int:
        return sum(map(len, self.visits))

    @property
    def last(self) -> Visit:
        return max((visits[-1] for visits in self.visits), key=lambda visit: visit.step)


def visits(run: RunRecord) -> list[Visit]:
    """Return a run's sampled groups, in order."""
    rows = sorted(run.rows, key=lambda row: row["step"])  # stable: within a step as they were written
    groups = groupby(rows, key=lambda row: (row["step"], row["id"]))
    return [Visit(step, name, list(group)) for (step, name), group in groups]


def histories(runs: Iterable[RunRecord]) -> list[History]:
    """Return every prompt that some run visited."""
    seen: dict[str, list[list[Visit]]] = {}
    for run in runs:
        own: dict[str, list[Visit]] = {}
        for visit in visits(run):
            own.setdefault(visit.id, []).append(visit)
        for name, its_visits in own.items():
            seen.setdefault(name, []).append(its_visits)
    return [History(name, its_runs) for name, its_runs in seen.items()]


def hardest(prompts: Sequence[History]) -> list[History]:
    """Return the prompts with only wrong completions at each run's last visit.

    The order is by the number of visits since a run last solved them, then by the latest visit.
    """
    hard = [prompt for prompt in prompts if prompt.wrong_visits]
    return sorted(hard, key=lambda prompt: (-prompt.wrong_visits, -prompt.last.step, prompt.id))


def newly_solved(prompts: Sequence[History]) -> list[History]:
    """Return the prompts that runs solved at the end but not at first; those that most runs solved come first."""
    solved = [prompt for prompt in prompts if prompt.solved_by]
    return sorted(solved, key=lambda prompt: (-len(prompt.solved_by), prompt.id))


def samples(run: RunRecord) -> list[Visit]:
    """Return groups from the beginning, the middle and the end of a run, preferably with a gradient."""
    found = visits(run)
    thirds = [found[len(found) * k // 3 : len(found) * (k + 1) // 3] for k in range(3)]
    return [next((visit for visit in third if visit.has_gradient), third[0]) for third in thirds if third]


def prompt_text(prompt: Any) -> str:
    """Return a recorded prompt, which is text or chat messages, as text."""
    if not isinstance(prompt, list):
        return str(prompt)
    return "\n".join(
        f"{m.get('role')}: {_content(m.get('content'))}" if isinstance(m, dict) else str(m) for m in prompt
    )


def _content(content: Any) -> str:
    """Return a message's content as text; it is text, or parts, some of which are images."""
    if not isinstance(content, list):
        return str(content)
    return "".join(part.get("text", "<image>") if isinstance(part, dict) else str(part) for part in content)


def _tail(visits: list[Visit]) -> int:
    """Return the number of most recent judged visits in a row with only wrong completions."""
    judged = [visit for visit in visits if visit.judged]
    solved = [k for k, visit in enumerate(judged) if visit.right]
    return len(judged) - 1 - (solved[-1] if solved else -1)
