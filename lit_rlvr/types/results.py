"""What rewards say of completions, and the failure of a program that they run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Status = Literal["ok", "parse_fail", "timeout", "error", "unjudged"]
STATUSES: tuple[Status, ...] = get_args(Status)
TURN_REWARDS = "turns"
"""The name of the reward that sums the rewards of a completion's turns."""


@dataclass(frozen=True)
class Places:
    """Places in an image as fractions of its width and height: points (x, y), boxes (x1, y1, x2, y2) and polygons.

    Args:
        reference: those of the row.
        answer: those of a completion.
    """

    reference: tuple[tuple[float, ...], ...] = ()
    answer: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class RewardResult:
    """A reward's judgement of one completion.

    Args:
        value: the reward, before its weight.
        correct: True or False for a right or wrong answer, or None if this reward does not judge that.
        status: "ok"; "parse_fail" and "timeout" are the answer's fault (value 0, in the loss);
            "error" is the checker's own failure (the loss masks the completion out);
            "unjudged" stands for a reward's None (the reward does not judge this completion).
        detail: the extracted answer, or the error.
        criteria: the score of each criterion of a rubric, from 0 to 1.
        places: the places that it compared, for pages that draw them; None = it compares none.

    Raises:
        ValueError: `correct` is not a truth value, or the status is unknown.
    """

    value: float
    correct: bool | None = None
    status: Status = "ok"
    detail: str = ""
    criteria: Mapping[str, float] = field(default_factory=dict)
    places: Places | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"RewardResult.status: {self.status!r} is not one of {', '.join(STATUSES)}")
        if self.correct is not None and not isinstance(self.correct, bool):
            object.__setattr__(self, "correct", _truth(self.correct))


def _truth(value: Any) -> bool:
    """Convert 0, 1 and the truth values of numpy and torch to False and True.

    Raises:
        ValueError: the value is anything else.
    """
    with suppress(TypeError, ValueError, RuntimeError):  # arrays of several values
        if value in (0, 1):
            return bool(value)
    raise ValueError(f"RewardResult.correct must be True, False or None, got {value!r}")


def recorded_places(results: Mapping[str, RewardResult]) -> dict[str, Any]:
    """Return the places of a completion and of its row under the key of files, if a reward compared some.

    Args:
        results: what each reward says of the completion.
    """
    places = []
    for result in results.values():
        if result.places is not None:
            places.append(result.places)
    if not places:
        return {}
    shapes = {}
    for name, given in vars(places[0]).items():
        shapes[name] = [[round(number, 4) for number in place] for place in given]
    return {"places": shapes}


class ExecutionFailed(Exception):
    """The failure of a program or a query, which leaves nothing to judge.

    Args:
        status: "timeout" = it hit a limit; "ok" = a program raised an exception or crashed; "parse_fail" = a query is
            wrong or not allowed; "error" = a database file is missing or broken.
        reason: the limit that it hit, the last line that it wrote to standard error, or SQLite's message.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
