"""Rubrics as rewards: a judge scores criteria, whose weighted sum is the reward."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lit_rlvr.errors import UserError, check_within, fits, given_text
from lit_rlvr.rewards.judges.base import Judge, Reply
from lit_rlvr.rewards.judges.prompts import Question, ask_about
from lit_rlvr.speech.prompts import prompt_text
from lit_rlvr.types import Pair, RewardResult, Sample

_log = logging.getLogger("lit_rlvr")

TEXTS, WEIGHTS = ("criterion", "description", "rubric_str", "text"), ("weight", "points")
"""Keys of a criterion's text and of its weight: HealthBench's, those of Rubrics as Rewards, tinker-cookbook's."""


@dataclass(frozen=True)
class Criterion:
    """A criterion of a rubric.

    Args:
        criterion: what the answer must do, in a sentence.
        weight: its part of the reward; below 0, meeting it costs as much.
    """

    criterion: str
    weight: float = 1.0


class RubricJudge(Judge):
    """The weighted criteria of a rubric that a judge finds met: sum(weight * score) / sum(weights above 0), within 0
    and 1.

    `correct` means that the value reaches `threshold`.

    Args:
        rubric: the criteria of all rows; null: each row has its own, in `column`.
        column: the column of the rows' rubrics: a list, or JSON text of one, of texts or of mappings with `criterion`
            (`description`, `rubric_str`) and `weight` (`points`).
        highest: the score of a criterion that is fully met; 1 = met or not, above it there is partial credit.
        one_call_each: ask about each criterion alone: better, and as many times as dear.
        threshold: the least value of a right answer.
        with_reference: the judge sees the row's answer, if there is one.
        kwargs: `server` and the other options of `Judge`.
    """

    default_task = "Judge an answer to a question by criteria. Score each by how far the answer meets it."

    def __init__(
        self,
        rubric: list[Criterion] | None = None,
        column: str = "rubric",
        highest: int = 1,
        one_call_each: bool = False,
        threshold: float = 0.5,
        with_reference: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within("[1, 100]", f"rewards.{type(self).__name__}", highest=highest)
        check_within("[0, 1]", f"rewards.{type(self).__name__}", threshold=threshold)
        self.rubric = None if rubric is None else read_rubric(rubric, f"rewards.{type(self).__name__}.rubric")
        self.column, self.highest, self.one_call_each = column, highest, one_call_each
        self.threshold, self.with_reference = threshold, with_reference

    def connect(self) -> None:
        super().connect()
        _log.info("reward %s: a value of %g or more is correct (threshold)", self.name, self.threshold)

    def check_reference(self, sample: Sample) -> None:
        self.rubric_of(sample)

    def rubric_of(self, sample: Sample) -> list[Criterion]:
        """Return the criteria for a sample.

        Raises:
            UserError: its column holds no rubric.
        """
        if self.rubric is not None:
            return self.rubric
        where = f"{sample.source or sample.id}, column {self.column!r} (rewards.RubricJudge.column)"
        return read_rubric(sample.row.get(self.column), where)

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        asked = [self.questions(pair) if self.text_of(pair) else [] for pair in pairs]
        replies = iter(self.ask([question for questions in asked for question in questions]))
        results = [
            self.result(self.rubric_of(pair[1]), [next(replies) for _ in questions])
            if questions
            else RewardResult(0.0, False, "parse_fail", "there is no answer behind the thoughts")
            for pair, questions in zip(pairs, asked, strict=True)
        ]
        self.warn_of_same(results)
        return results

    def questions(self, pair: Pair) -> list[Question]:
        """Return the questions about a completion: one for all criteria, or one for each."""
        _, sample = pair
        rubric = self.rubric_of(sample)
        reference = " or ".join(map(str, filter(None, sample.references))) if self.with_reference else ""
        material = {
            "question": prompt_text(sample.prompt),
            **({"reference answer": reference} if reference else {}),
            "answer": self.text_of(pair),
        }
        numbered = {f"score_{k}": one.criterion for k, one in enumerate(rubric, 1)}
        parts = [{name: text} for name, text in numbered.items()] if self.one_call_each else [numbered]
        scores = tuple(range(self.highest + 1))
        return [
            ask_about(
                "\n".join([self.task, *(f"{name}: {text}" for name, text in part.items())]),
                material, dict.fromkeys(part, scores), self.has_reason,
            )
            for part in parts
        ]  # fmt: skip

    def result(self, rubric: Sequence[Criterion], replies: Sequence[Reply]) -> RewardResult:
        """Return the result for the replies to the questions about a completion."""
        if failures := [reply for reply in replies if isinstance(reply, str)]:
            return RewardResult(0.0, None, "error", failures[0])
        scores = [score / self.highest for reply in replies for score in dict(reply).values()]
        total = sum(one.weight * score for one, score in zip(rubric, scores, strict=True))
        value = min(max(total / sum(max(one.weight, 0.0) for one in rubric), 0.0), 1.0)
        criteria = {one.criterion: score for one, score in zip(rubric, scores, strict=True)}
        return RewardResult(value, value >= self.threshold, criteria=criteria)


class PointwiseJudge(RubricJudge):
    """A judge's score of an answer, from 0 to 1: a rubric of one criterion.

    Args:
        highest: the highest score that the judge can give; the reward is the score divided by it.
        kwargs: `threshold`, `with_reference`, `server` and the other options of `RubricJudge`; `task` says what a good
            answer is.
    """

    default_task = (
        "Judge how good an answer to a question is: right, complete and to the point. If there is a reference answer, "
        "a good answer says the same in substance, in whatever words."
    )

    def __init__(self, highest: int = 10, **kwargs: Any) -> None:
        rubric = [Criterion("How good is the answer?")]
        super().__init__(rubric=rubric, column="", one_call_each=False, highest=highest, **kwargs)


def read_rubric(given: Any, where: str) -> list[Criterion]:
    """Return the criteria of a rubric in one of the known forms. All criteria have weights, or none has one and each
    counts 1.

    Raises:
        UserError: it is none of them, a criterion is empty, or a weight is missing or no number.
    """
    with suppress(ValueError):
        given = json.loads(given) if isinstance(given, str) else given
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise UserError(f"{where}: {given_text(given)} is no list of criteria, nor JSON text of one; give some")
    fields = [vars(one) if isinstance(one, Criterion) else one for one in given]
    read = [one if isinstance(one, Mapping) else {TEXTS[0]: one} for one in fields]
    texts = [next((one[key] for key in TEXTS if key in one), None) for one in read]
    weights = [next((one[key] for key in WEIGHTS if key in one), None) for one in read]
    if weights == [None] * len(read):
        weights = [1.0] * len(read)
    for number, (text, weight) in enumerate(zip(texts, weights, strict=True), 1):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: criterion {number} is empty; say under {' or '.join(TEXTS)} what it asks for")
        if not fits(weight, float) or not math.isfinite(weight):
            raise UserError(f"{where}: criterion {number} has the weight {weight!r}; give a number as {WEIGHTS[0]}")
    if max(weights) <= 0:
        raise UserError(f"{where}: no criterion has a weight above 0, so there is nothing to earn; give one")
    return [Criterion(text, float(weight)) for text, weight in zip(texts, weights, strict=True)]
