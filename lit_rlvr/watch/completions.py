"""Follows a run's completions.jsonl: which prompts were visited, when, and how many completions were correct."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lit_rlvr.files import has_fields
from lit_rlvr.report.prompts import Visit, prompt_text
from lit_rlvr.report.runs import ROW, verdict

Course = Literal["solved", "lost", "never right", "right from the start"]
COURSES: tuple[Course, ...] = get_args(Course)
KEPT = 300
"""Characters of a prompt and its answer that are kept for tables."""


@dataclass(slots=True)
class Place:
    """A visit of a prompt: its group's lines in the file.

    Args:
        step: optimizer step at the end of the iteration. start, end: bytes of the file.
        right: correct completions of the `judged` ones; count: all. reward: the sum of all rewards.
        live: whether any advantage is not 0.
    """

    step: int
    start: int
    end: int
    right: int = 0
    judged: int = 0
    count: int = 0
    reward: float = 0.0
    live: bool = False

    @property
    def share(self) -> float:
        return self.right / max(self.judged, 1)


@dataclass
class Followed:
    """A prompt and its visits in order; `text` and `answer` are cut for tables."""

    id: str
    text: str
    answer: str
    places: list[Place] = field(default_factory=list)

    @property
    def course(self) -> Course:
        """What became of it, from its first to its last visit."""
        judged = [place for place in self.places if place.judged]
        if not any(place.right for place in judged):
            return "never right"
        if not judged[-1].right:
            return "lost"
        return "right from the start" if judged[0].right else "solved"


class Completions:
    """The index of a completions.jsonl that may still be written; texts stay in the file.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.prompts: dict[str, Followed] = {}
        self.rows = self.unreadable = self.read = self.size = 0
        self._file: tuple[int, int] | None = None
        self._last: tuple[str, Place] | None = None

    def follow(self, seconds: float) -> bool:
        """Read new lines for at most so long. A file that was replaced, as a resumed run does, is read from the start.

        Returns:
            Whether everything that is there has been read.
        """
        try:
            stat = self.path.stat()
        except OSError:
            self._forget()
            return True
        if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self.read:
            self._forget()
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
                self._take(line)
                if time.perf_counter() > until:
                    return False
        return True

    def _take(self, line: bytes) -> None:
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
        if self._last is None or self._last[0] != name or self._last[1].step != step:
            prompt = self.prompts.get(name)
            if prompt is None:
                prompt = Followed(name, prompt_text(row["prompt"])[:KEPT], row["answer"][:KEPT])
                self.prompts[name] = prompt
            place = Place(step, start, start)
            prompt.places.append(place)
            self._last = (name, place)
        place = self._last[1]
        place.end = self.read
        place.count += 1
        said = verdict(row)
        place.right += said == "correct"
        place.judged += said in ("correct", "wrong")
        place.reward += row["reward"]
        place.live = place.live or bool(row["advantage"])

    def visit(self, name: str, step: int) -> Visit | None:
        """The group of a prompt at a step, read from the file; None if it is not there (any more)."""
        prompt = self.prompts.get(name)
        place = next((place for place in prompt.places if place.step == step), None) if prompt else None
        if place is None:
            return None
        try:
            with self.path.open("rb") as file:
                file.seek(place.start)
                lines = file.read(place.end - place.start).splitlines()
            rows: list[dict[str, Any]] = [row for row in map(json.loads, lines) if has_fields(row, ROW)]
        except (OSError, ValueError):  # it was replaced meanwhile
            return None
        rows = [row for row in rows if row["id"] == name and row["step"] == step]
        return Visit(step, name, rows) if rows else None
