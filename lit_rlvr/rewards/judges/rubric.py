"""Rubrics as rewards: a judge scores criteria, whose weighted sum is the reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from lit_rlvr.common.arguments import check_within, fits, given_text
from lit_rlvr.common.columns import as_object, is_missing, lookup
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import LARGEST, reaches
from lit_rlvr.rewards.judges.base import Judge
from lit_rlvr.rewards.judges.prompts import Question, Reply, ask_about
from lit_rlvr.rewards.judges.replies import plain_key
from lit_rlvr.speech.prompts import prompt_text
from lit_rlvr.types import Pair, RewardResult, Sample

NO_ANSWER = "there is no answer behind the thoughts"
"""Why a text without an answer gets nothing."""
Rubric = dict[str, float]
"""Criterion -> its weight."""

TEXTS = (
    "criterion", "criteria", "criteriontext", "description", "rubricstr", "rubricitem", "rubric", "requirement", "text",
    "question", "ingredient", "name", "title",
)  # fmt: skip
"""Keys of a criterion's text in rows, without case and separators: the first that is there counts."""
WEIGHTS = ("weight", "weights", "points", "point", "score", "value")
"""Keys of a criterion's weight."""
NOTES = (
    "title", "name", "tags", "id", "index", "number", "category", "axis", "section", "source", "explanation",
    "rationale", "examples", "extractionregex", "graderoutputformatinstruction",
)  # fmt: skip
"""Keys that say nothing of the weight."""


class RubricJudge(Judge):
    """The weighted share of a rubric's criteria that a judge finds met.

    The value is sum(weight * score) / sum(weights above 0), within 0 and 1. `correct` means that the value reaches
    `threshold`.

    Args:
        rubric: criterion -> weight, for all rows; meeting a criterion with a weight below 0 costs as much. null: each
            row has its own rubric, in `column`.
        column: the column of the rows' rubrics, perhaps nested (`extra_info.rubric`): a mapping, or a list of texts or
            of mappings with `criterion` (`description`, `rubric_str`) and `weight` (`points`), or JSON text of one.
        highest: the score of a criterion that is fully met; 1 = met or not, above it there is partial credit.
        one_call_each: ask about each criterion alone: more reliable, with a call for each criterion.
        threshold: the least value of a right answer.
        with_reference: the judge sees the row's answer, if there is one.
        kwargs: `server` and the other options of `Judge`.
    """

    default_task = "Judge an answer to a question by criteria. Score each by how far the answer meets it."

    def __init__(
        self,
        rubric: dict[str, float] | None = None,
        column: str = "rubric",
        highest: int = 1,
        one_call_each: bool = False,
        threshold: float = 0.5,
        with_reference: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within("[1, 20]", f"rewards.{type(self).__name__}", highest=highest)
        check_within("[0, 1]", f"rewards.{type(self).__name__}", threshold=threshold)
        if rubric is None:
            self.rubric = None
        else:
            self.rubric = read_rubric(rubric, f"rewards.{type(self).__name__}.rubric")
        self.column = column
        self.highest = highest
        self.one_call_each = one_call_each
        self.threshold = threshold
        self.with_reference = with_reference

    def check_reference(self, sample: Sample) -> None:
        super().check_reference(sample)
        self.rubric_of(sample)

    def trial(self) -> Question:
        """Return a question about all criteria, or about one if each row has its own."""
        if self.rubric is None:
            return super().trial()
        return self.questions(self.trial_pair)[0]

    def rubric_of(self, sample: Sample) -> Rubric:
        """Return the criteria for a sample.

        Raises:
            UserError: its column holds no rubric.
        """
        if self.rubric is not None:
            return self.rubric
        where = f"{sample.source or sample.id}, column {self.column!r} (rewards.RubricJudge.column)"
        rubric = lookup(sample.row, self.column)
        if rubric is None:
            raise UserError(f"{where}: the row has none; its columns are {', '.join(sample.row)}")
        return read_rubric(rubric, where)

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        questions_of_pairs = []
        for pair in pairs:
            questions_of_pairs.append(self.questions(pair) if self.text_of(pair) else [])
        replies = iter(self.ask([*chain(*questions_of_pairs)]))
        results = []
        for pair, questions in zip(pairs, questions_of_pairs, strict=True):
            if questions:
                results.append(self.result(self.rubric_of(pair[1]), [*islice(replies, len(questions))]))
            else:
                results.append(RewardResult(0.0, False, "parse_fail", NO_ANSWER))
        return results

    def questions(self, pair: Pair) -> list[Question]:
        """Return the questions about a completion: one for all criteria, or one for each."""
        completion, sample = pair
        if self.with_reference:
            reference = " or ".join(map(str, filter(None, sample.references)))
        else:
            reference = ""
        material = {
            "question": prompt_text(sample.told),
            **({"reference answer": reference} if reference else {}),
            "answer": self.text_of(pair),
        }
        named = {}
        for number, criterion in enumerate(self.rubric_of(sample), 1):
            named[f"score_{number}"] = criterion
        if self.one_call_each:
            parts = []
            for name, criterion in named.items():
                parts.append({name: criterion})
        else:
            parts = [named]
        scores = tuple(range(self.highest + 1))
        images = self.images_of(sample)
        shown = {"answer": self.images_shown(completion)}
        questions = []
        for part in parts:
            listed = []
            for name, criterion in part.items():
                listed.append(f"{name}: {criterion}")
            task = "\n".join([self.task, *listed])
            questions.append(ask_about(task, material, dict.fromkeys(part, scores), self.has_reason, images, shown))
        return questions

    def result(self, rubric: Rubric, replies: Sequence[Reply]) -> RewardResult:
        """Return the result for the replies to the questions about a completion."""
        failures = []
        for reply in replies:
            if isinstance(reply, str):
                failures.append(reply)
        if failures:
            return RewardResult(0.0, None, "error", failures[0])
        grades = []
        for reply in replies:
            if isinstance(reply, dict):
                grades.append(reply)
        scores = []
        for reply in grades:
            for score in reply.values():
                scores.append(score / self.highest)
        total = sum(weight * score for weight, score in zip(rubric.values(), scores, strict=True))
        value = min(max(total / sum(max(weight, 0.0) for weight in rubric.values()), 0.0), 1.0)
        detail = f"{value:.3g}, right from {self.threshold:g} on"
        return RewardResult(value, reaches(value, self.threshold), "ok", detail, dict(zip(rubric, scores, strict=True)))


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
        rubric = {"How good is the answer?": 1.0}
        super().__init__(rubric=rubric, column="", one_call_each=False, highest=highest, **kwargs)


def read_rubric(rubric: Any, where: str) -> Rubric:
    """Read a rubric in one of the known forms. All criteria have weights, or none has one and each counts 1.

    It is a mapping of texts and weights, or a list of texts, of pairs of text and weight, or of mappings; also one that
    a mapping holds as its only list, and JSON text of each. Nulls fill up the columns of Parquet and say nothing.

    Raises:
        UserError: it has no such form, a criterion is empty or twice there, a weight is missing or no number, or a
            criterion without a weight has another key that could be one.
    """
    given = rubric
    rubric = as_object(rubric)
    if isinstance(rubric, Mapping):
        rubric = _criteria_in(_without_nulls(rubric))
    if not isinstance(rubric, list) or not rubric:
        raise UserError(f"{where}: {given_text(given)} is no list of criteria, nor JSON text of one; give some")
    places = []
    for number in range(1, len(rubric) + 1):
        places.append(f"{where}: criterion {number}")
    read = []
    for entry, place in zip(rubric, places, strict=True):
        read.append(_criterion(entry, place))
    has_weights = any(weight is not None for _, weight in read)
    criteria: Rubric = {}
    for (text, weight), place in zip(read, places, strict=True):
        if not text.strip() or text in criteria:
            raise UserError(f"{place} is empty, or an earlier one; say as {TEXTS[0]} what it asks for")
        if has_weights:
            criteria[text] = _as_weight(weight, place)
        else:
            criteria[text] = 1.0
    if max(criteria.values()) <= 0:
        raise UserError(f"{where}: no criterion has a weight above 0, so there is nothing to earn; give one")
    return criteria


def _criteria_in(rubric: Mapping[str, Any]) -> list[Any]:
    """Return the criteria that a mapping holds as its only list, or whose texts are its keys."""
    lists = []
    for value in rubric.values():
        if isinstance(value, list):
            lists.append(value)
    if len(lists) == 1:
        return lists[0]
    criteria = []
    for text, entry in rubric.items():
        criteria.append(_entry(text, entry))
    return criteria


def _entry(text: str, entry: Any) -> Any:
    """Return a criterion of a mapping: its key is the text, unless the mapping that it stands for has one."""
    if not isinstance(entry, Mapping):
        return [text, entry]
    has_text = any(plain_key(str(key)) in TEXTS for key in _without_nulls(entry))
    if has_text:
        return entry
    return {TEXTS[0]: text} | dict(entry)


def _criterion(entry: Any, place: str) -> tuple[str, Any]:
    """Return the text of a criterion and its weight, None if it has none.

    Raises:
        UserError: its text or its weight cannot be told.
    """
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
        return entry[0], entry[1]
    if not isinstance(entry, Mapping):
        if isinstance(entry, str):
            return (entry, None)
        return ("", None)
    named = {}
    for key, value in _without_nulls(entry).items():
        named[plain_key(str(key))] = (key, value)
    text_keys = []
    for key in TEXTS:
        if isinstance(named.get(key, ("", None))[1], str):
            text_keys.append(key)
    if not text_keys:
        if not named:
            return "", None
        raise UserError(
            f"{place} says in none of its keys ({', '.join(map(str, entry))}) what it asks for; say it as {TEXTS[0]}"
        )
    weights = {}
    for key in WEIGHTS:
        if key in named:
            weights[named[key][0]] = named[key][1]
    others = []
    for name, (key, _) in named.items():
        if name not in (*text_keys[:1], *NOTES, *WEIGHTS):
            others.append(key)
    if not weights and others:
        raise UserError(
            f"{place} has no {WEIGHTS[0]}, but {others[0]!r}, which may be one; call it {WEIGHTS[0]} (also "
            f"{', '.join(WEIGHTS[2:])}) and give a number, or leave it out"
        )
    for key in others:
        value = str(entry[key]).strip().lower()
        if weights and value == "negative" and _as_weight(next(iter(weights.values())), place) > 0:
            raise UserError(f"{place} is {key}: {entry[key]}, but its weight is above 0; give a weight below 0")
    if len({repr(weight) for weight in weights.values()}) > 1:
        raise UserError(f"{place} has two weights, {' and '.join(map(repr, weights))}; leave one out")
    return named[text_keys[0]][1], next(iter(weights.values()), None)


def _as_weight(weight: Any, place: str) -> float:
    """Return a weight, which may be a number in text.

    Raises:
        UserError: it is no finite number, or too large to sum up.
    """
    number = math.nan
    if isinstance(weight, str) or fits(weight, float):
        with suppress(ValueError, OverflowError):
            number = float(weight)
    if not math.isfinite(number):
        raise UserError(f"{place} has the weight {given_text(weight)}; give a number as {WEIGHTS[0]}")
    if abs(number) > LARGEST:
        raise UserError(f"{place} has the weight {number:g}; give one between -{LARGEST:g} and {LARGEST:g}")
    return number


def _without_nulls(entry: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a mapping without the keys that hold null, or no number."""
    nulls = {}
    for key, value in entry.items():
        if not is_missing(value):
            nulls[key] = value
    return nulls
