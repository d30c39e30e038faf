"""The prompts in a run's completions.jsonl: their visits, what became of them, and groups to show.

It covers the prompts that a run saved to the file (`run.save_prompts` of each rollout), which may still grow.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lit_rlvr.commands.report.runs import RunRecord
from lit_rlvr.common.files import Fields, has_fields
from lit_rlvr.speech.prompts import prompt_text

ROW: Fields = {
    "step": int, "id": str, "sample": int, "prompt": (str, list), "answer": str, "completion": str,
    "finish_reason": str, "tokens": int, "reward": (int, float, type(None)), "correct": (bool, type(None)),
    "status": str, "advantage": (int, float, type(None)),
}  # fmt: skip
"""A line of completions.jsonl."""
MOST_BARS = 40
"""The most bars of a prompt in a table."""
MAX_CHARACTERS = 300
"""The most characters of a prompt and of its answer that the tables show."""
PromptOutcome = Literal["never right", "lost", "solved", "right from the start"]
OUTCOMES: tuple[PromptOutcome, ...] = get_args(PromptOutcome)


def verdict_text(row: Mapping[str, Any]) -> str:
    """Return "correct", "wrong", "check failed" or "not judged" for a recorded completion."""
    if row["status"] == "error":
        return "check failed"
    if row["correct"] is None:
        return "not judged"
    if row["correct"]:
        return "correct"
    return "wrong"


def image_keys(record: Mapping[str, Any]) -> list[str]:
    """Return the keys of the thumbnails of a prompt's images, without what is no key.

    Args:
        record: a line of completions.jsonl or a saved group; `images` has the keys.
    """
    keys = record.get("images")
    if not isinstance(keys, list):
        return []
    return [key for key in keys if isinstance(key, str) and re.fullmatch(r"[0-9a-f]+", key)]


@dataclass(slots=True)
class Visit:
    """A prompt's group of completions in one rollout: the place of its lines in the file, and their totals.

    Args:
        id: the prompt's id.
        step: optimizer step at the end of the iteration.
        start, end: where its lines begin and end in the file, in bytes.
        correct: completions with a right answer.
        judged: completions whose answer a reward calls right or wrong.
        count: all completions.
        rewarded: completions with a reward.
        reward: the sum of their rewards.
        has_gradient: whether any advantage is not 0.
    """

    id: str
    step: int
    start: int
    end: int
    correct: int = 0
    judged: int = 0
    count: int = 0
    rewarded: int = 0
    reward: float = 0.0
    has_gradient: bool = False

    @property
    def share(self) -> float:
        """The share of judged completions that are correct."""
        return self.correct / max(self.judged, 1)

    @property
    def mean_reward(self) -> str:
        """The mean reward as text; "none" without one."""
        if self.rewarded:
            return f"{self.reward / self.rewarded:.3g}"
        return "none"

    @property
    def score(self) -> str:
        """The correct and the judged completions as text, such as "3 of 8"."""
        return f"{self.correct} of {self.judged}"


@dataclass
class TrackedPrompt:
    """A prompt and its visits in order.

    Args:
        id: the prompt's id.
        text: the prompt, cut for the tables.
        answer: its reference answer, cut for the tables.
        images: the keys of its images' thumbnails.
        visits: its groups, one for each rollout that has it.
    """

    id: str
    text: str
    answer: str
    images: list[str] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)

    @property
    def outcome(self) -> PromptOutcome:
        """The change from the prompt's first to its last visit."""
        judged = [visit for visit in self.visits if visit.judged]
        if not any(visit.correct for visit in judged):
            return "never right"
        if not judged[-1].correct:
            return "lost"
        if judged[0].correct:
            return "right from the start"
        return "solved"

    @property
    def bars(self) -> list[tuple[float, str]]:
        """The visits as bars, each with its height from 0 to 1 and a description; of many visits, several share one."""
        width = -(-len(self.visits) // MOST_BARS)
        bars = []
        for start in range(0, len(self.visits), width):
            bars.append(_bar(self.visits[start : start + width]))
        return bars


def _bar(visits: list[Visit]) -> tuple[float, str]:
    correct = sum(past.correct for past in visits)
    judged = sum(past.judged for past in visits)
    first = visits[0].step
    last = visits[-1].step
    if first == last:
        steps = f"step {first}"
    else:
        steps = f"steps {first} to {last}"
    return correct / max(judged, 1), f"{steps}: {correct} of {judged}"


class CompletionsIndex:
    """The index of a completions.jsonl that a run may still write; texts stay in the file.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()

    def _reset(self) -> None:
        self.prompts: dict[str, TrackedPrompt] = {}
        self.rows = self.unreadable = self.read = self.size = 0
        self._file: tuple[int, int] | None = None
        self._last: Visit | None = None

    def follow(self, seconds: float) -> bool:
        """Index new lines for at most so long; forget everything if the file is gone.

        Returns:
            Whether everything that is there has been read.
        """
        try:
            return self.index(seconds)
        except OSError:  # there is none, it was replaced meanwhile, or its disk is gone
            self._reset()
            return True

    def index(self, seconds: float = math.inf) -> bool:
        """Index new lines as `follow` does; index a file from the start if a resumed run has replaced it.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        until = time.perf_counter() + seconds
        with self.path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self.read:
                self._reset()
                self._file = (stat.st_dev, stat.st_ino)
            self.size = stat.st_size
            file.seek(self.read)
            for line in file if self.size > self.read else ():
                if not line.endswith(b"\n"):  # it is being written
                    break
                self._index_line(line)
                if time.perf_counter() > until:
                    return False
        return True

    def _index_line(self, line: bytes) -> None:
        start = self.read
        self.read = self.read + len(line)
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not has_fields(row, ROW):
            self.unreadable += 1
            return
        self.rows += 1
        name = row["id"]
        step = row["step"]
        visit = self._last
        if visit is None or (visit.id, visit.step) != (name, step):
            visit = self._last = Visit(name, step, start, start)
            if name not in self.prompts:
                text = prompt_text(row["prompt"])
                answer = row["answer"]
                self.prompts[name] = TrackedPrompt(
                    name, text[:MAX_CHARACTERS], answer[:MAX_CHARACTERS], image_keys(row)
                )
            self.prompts[name].visits.append(visit)
        visit.end = self.read
        visit.count += 1
        judgement = verdict_text(row)
        if judgement == "correct":
            visit.correct += 1
        if judgement in ("correct", "wrong"):
            visit.judged += 1
        if row["reward"] is not None:
            visit.rewarded += 1
            visit.reward += row["reward"]
        visit.has_gradient = visit.has_gradient or bool(row["advantage"])

    def read_group(self, visit: Visit) -> list[dict[str, Any]]:
        """Read the rows of a visit from the file; return none if it was replaced meanwhile."""
        try:
            with self.path.open("rb") as file:
                file.seek(visit.start)
                lines = file.read(visit.end - visit.start).splitlines()
            rows: list[dict[str, Any]] = []
            for row in map(json.loads, lines):
                if has_fields(row, ROW):
                    rows.append(row)
        except (OSError, ValueError):
            return []
        group = []
        for row in rows:
            if (row["id"], row["step"]) == (visit.id, visit.step):
                group.append(row)
        return group


def index_completions(run: RunRecord) -> CompletionsIndex:
    """Index a run's completions.jsonl, and note in the run what cannot be read."""
    index = CompletionsIndex(run.path / "completions.jsonl")
    with run.noting("completions.jsonl"):
        index.index()
    bad = index.unreadable + (index.read < index.size)
    if bad:  # a killed run leaves a torn line
        run.notes.append(f"completions.jsonl: {bad} unreadable lines were left out")
    return index


def count_outcomes(index: CompletionsIndex) -> dict[PromptOutcome, int]:
    """Return the number of prompts with each outcome."""
    return dict.fromkeys(OUTCOMES, 0) | Counter(prompt.outcome for prompt in index.prompts.values())


def list_prompts(index: CompletionsIndex, outcome: str = "", words: str = "") -> list[TrackedPrompt]:
    """Return the prompts in the order of `OUTCOMES`, and of equal outcomes the most visited first.

    Args:
        index: the index of a run's completions.
        outcome: one of `OUTCOMES`; "" = all.
        words: text that the prompt, answer or id contains.
    """
    prompts = []
    for prompt in index.prompts.values():
        text = f"{prompt.id}\n{prompt.text}\n{prompt.answer}".casefold()
        if outcome in ("", prompt.outcome) and words.casefold() in text:
            prompts.append(prompt)
    return sorted(prompts, key=lambda prompt: (OUTCOMES.index(prompt.outcome), -len(prompt.visits), prompt.id))


def samples(index: CompletionsIndex) -> list[Visit]:
    """Return groups from the beginning, the middle and the end of a run, preferably with a gradient."""
    visits = sorted((v for prompt in index.prompts.values() for v in prompt.visits), key=lambda visit: visit.start)
    chosen = []
    for k in range(3):
        third = visits[len(visits) * k // 3 : len(visits) * (k + 1) // 3]
        if third:
            chosen.append(next((visit for visit in third if visit.has_gradient), third[0]))
    return chosen
