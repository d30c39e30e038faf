"""An index of a run's completions.jsonl: which prompts the run visited, when, and how many completions were correct."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lit_rlvr.files import has_fields
from lit_rlvr.report.prompts import Visit, prompt_text
from lit_rlvr.report.runs import ROW, verdict

Outcome = Literal["solved", "lost", "never right", "right from the start"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
MAX_CHARACTERS = 300
"""The most characters of a prompt and of its answer that the tables show."""


@dataclass(slots=True)
class VisitRecord:
    """A visit of a prompt: the place of its group's lines in the file, and their totals.

    Args:
        step: optimizer step at the end of the iteration. start, end: bytes of the file.
        right: correct completions of the `judged` ones; count: all. reward: the sum of all rewards.
        has_gradient: whether any advantage is not 0.
    """

    step: int
    start: int
    end: int
    right: int = 0
    judged: int = 0
    count: int = 0
    reward: float = 0.0
    has_gradient: bool = False

    @property
    def share(self) -> float:
        return self.right / max(self.judged, 1)


@dataclass
class TrackedPrompt:
    """A prompt and its visits in order; `text` and `answer` are cut for the tables."""

    id: str
    text: str
    answer: str
    visits: list[VisitRecord] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """The change from the prompt's first to its last visit."""
        judged = [record for record in self.visits if record.judged]
        if not any(record.right for record in judged):
            return "never right"
        if not judged[-1].right:
            return "lost"
        return "right from the start" if judged[0].right else "solved"


class Completions:
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
        self._last_record: tuple[str, VisitRecord] | None = None

    def follow(self, seconds: float) -> bool:
        """Read new lines for at most so long; read a file from the start if a resumed run has replaced it.

        Returns:
            Whether everything that is there has been read.
        """
        try:
            stat = self.path.stat()
        except OSError:
            self._reset()
            return True
        if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self.read:
            self._reset()
            self._file = (stat.st_dev, stat.st_ino)
        self.size = stat.st_size
        if self.size == self.read:
            return True
        until = time.perf_counter() + seconds
        with self.path.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                self._index_line(line)
                if time.perf_counter() > until:
                    return False
        return True

    def _index_line(self, line: bytes) -> None:
        start, self.read = self.read, self.read + len(line)
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not has_fields(row, ROW):
            self.unreadable += 1
            return
        self.rows += 1
        name, step = row["id"], row["step"]
        if self._last_record is None or self._last_record[0] != name or self._last_record[1].step != step:
            prompt = self.prompts.get(name)
            if prompt is None:
                prompt = TrackedPrompt(
                    name, prompt_text(row["prompt"])[:MAX_CHARACTERS], row["answer"][:MAX_CHARACTERS]
                )
                self.prompts[name] = prompt
            record = VisitRecord(step, start, start)
            prompt.visits.append(record)
            self._last_record = (name, record)
        record = self._last_record[1]
        record.end = self.read
        record.count += 1
        judgement = verdict(row)
        record.right += judgement == "correct"
        record.judged += judgement in ("correct", "wrong")
        record.reward += row["reward"]
        record.has_gradient = record.has_gradient or bool(row["advantage"])

    def visit(self, name: str, step: int) -> Visit | None:
        """Read the group of a prompt at a step from the file; return None if it is not there."""
        prompt = self.prompts.get(name)
        record = next((record for record in prompt.visits if record.step == step), None) if prompt else None
        if record is None:
            return None
        try:
            with self.path.open("rb") as file:
                file.seek(record.start)
                lines = file.read(record.end - record.start).splitlines()
            rows: list[dict[str, Any]] = [row for row in map(json.loads, lines) if has_fields(row, ROW)]
        except (OSError, ValueError):  # it was replaced meanwhile
            return None
        rows = [row for row in rows if row["id"] == name and row["step"] == step]
        return Visit(step, name, rows) if rows else None
