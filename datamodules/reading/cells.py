"""The cells of rows: text, rewards, reference answers; and `BadRow`, a row that cannot be used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any, Literal

from lit_rlvr.common.columns import as_object, as_python, is_missing, parse_text


class BadRow(Exception):
    """A row that cannot be used. The DataModule skips and counts it, and refuses a file with more than `max_bad_rows`.

    Args:
        reason: what is wrong with the row, for the user.
        field: the field concerned ("prompt", "answer", ...).
        source: "file:row"; `PromptDataModule` fills it in.
    """

    def __init__(self, reason: str, field: str = "row", source: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
        self.source = source

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.field, self.reason) if part)


Answers = Literal["any", "all", "object"]

_ANSWER_TAG = re.compile(r"(?:.*</think>)?\s*<answer>(.*?)</answer>\s*", re.DOTALL | re.IGNORECASE)

ANSWER_KEYS = ("value", "target", "text", "answer", "ground_truth")
"""Keys that hold the answer in a cell that is a dict: TriviaQA's, Search-R1's, SQuAD's and others."""
ALIAS_KEYS = ("aliases", "normalized_aliases")


def as_reward_weights(value: Any, field: str = "reward") -> dict[str, float | None] | None:
    """Read a cell as the rewards that judge a row: a name, a list of names, or a dict of name -> weight; None = blank.

    A null in a dict is no weight but a name that the row lacks: Parquet fills up dicts of other rows with them.

    Raises:
        BadRow: it has another form or no name, or a weight is not a finite number.
    """
    value = as_object(value)
    if is_missing(value) or value == "":
        return None
    named: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        for name, weight in value.items():
            if weight is not None:
                named.append((name, weight))
    elif isinstance(value, list):
        for name in value:
            named.append((name, None))
    else:
        named.append((value, None))
    for name, weight in named or [(None, None)]:
        is_number = isinstance(weight, int | float) and math.isfinite(weight)
        if not isinstance(name, str) or not (weight is None or is_number):
            raise BadRow("expected a reward's name, a list of names, or a dict of name: weight", field)
    return dict(named)


def as_text(value: Any, field: str) -> str:
    """Convert a cell to text: 145.0 becomes "145", and a list becomes its items joined by ", ".

    Decimals lose the zeros that fill up their column ("12.50" becomes "12.5"), and so do dates ("2024-05-01").

    Raises:
        BadRow: it is missing, empty, NaN, or not text, a number, a date or a list of these.
    """
    value = as_python(value)
    if isinstance(value, list | tuple):
        value = ", ".join(as_text(part, field) for part in value)
    if is_missing(value):
        raise BadRow("missing", field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, Decimal) and value.is_finite():
        value = f"{value.normalize():f}"
    elif isinstance(value, date | time):
        value = str(value).removesuffix(" 00:00:00")
    if not isinstance(value, str | int | float):
        raise BadRow(f"expected text or a number, got {type(value).__name__}", field)
    text = str(value)
    if not text.strip():
        raise BadRow("empty", field)
    return text


def as_answers(value: Any, how: Answers = "any", field: str = "answer") -> tuple[str, ...]:
    """Read a cell as reference answers, each of which suffices.

    It holds a text or a number; a list of answers, also the text of a list of texts; or a dict with one of
    `ANSWER_KEYS` and perhaps `ALIAS_KEYS`. A text in <answer> tags loses them.

    Args:
        value: the cell.
        how: "all": a list is one answer, its items joined by ", ", and a text is never a list; "object": the answer is
            the JSON text of a cell that holds a list or a dict.
        field: the field's name in errors.

    Raises:
        BadRow: there is no answer, or a list holds lists.
    """
    if how == "object":
        value = as_object(value)
        if isinstance(value, list | dict) and value:
            return (json.dumps(value, ensure_ascii=False, default=str),)
    if how == "any":
        answers = _answers(as_python(value), field)
    else:
        answers = [as_text(value, field)]
    return tuple(dict.fromkeys(without_tags(answer, field) for answer in answers))


def _answers(value: Any, field: str) -> list[str]:
    if isinstance(value, str):
        parsed = parse_text(value)
        if _holds_answers(parsed):
            value = parsed
    if isinstance(value, Mapping):
        key = next((key for key in ANSWER_KEYS if not is_blank(value.get(key))), None)
        if key is None:
            known = ", ".join(ANSWER_KEYS)
            raise BadRow(
                f"a dict without an answer; the known keys are {known}. Map COLUMN.KEY, or set `data.reading.answers: "
                "object` for a reward that reads the whole",
                field,
            )
        others = []
        for name in ALIAS_KEYS:
            if not is_blank(value.get(name)):
                others.append(value[name])
        value = [value[key], *others]
        found = []
        for part in value:
            found.extend(_answers(as_python(part), field))
        return found
    if not isinstance(value, list | tuple):
        return [as_text(value, field)]
    items = []
    for item in map(as_python, value):
        if not is_blank(item):
            items.append(item)
    if not items:
        raise BadRow("missing", field)
    if any(isinstance(item, list | tuple) for item in items):
        raise BadRow("a list of lists; give one list of answers, any of which is right, or set `answers: all`", field)
    answers = []
    for item in items:
        if isinstance(item, Mapping):
            answers += _answers(item, field)
        else:
            answers.append(as_text(item, field))
    return answers


def _holds_answers(parsed: Any) -> bool:
    """Return True for what a text of answers holds: texts, Search-R1's dict or TriviaQA's.

    Lists of numbers are no such answers, because intervals and vectors look the same.
    """
    if isinstance(parsed, dict):
        return "target" in parsed or {"value", "aliases"} <= parsed.keys()
    return isinstance(parsed, list) and bool(parsed) and all(isinstance(item, str) for item in parsed)


def is_empty(value: Any) -> bool:
    """Return True for a cell that holds nothing: a missing value, "", and a list or dict of such cells."""
    if isinstance(value, list | tuple | Mapping):
        return all(map(is_empty, value.values() if isinstance(value, Mapping) else value))
    return is_missing(value) or (isinstance(value, str | bytes) and not value)


def is_blank(value: Any) -> bool:
    """Return True for an empty cell and a text of spaces, and for a list or dict of such cells."""
    if getattr(value, "ndim", 0) > 1:  # a picture
        return False
    value = as_python(value)
    if isinstance(value, list | tuple | Mapping):
        return all(map(is_blank, value.values() if isinstance(value, Mapping) else value))
    return is_empty(value.strip() if isinstance(value, str) else value)


def without_tags(answer: str, field: str) -> str:
    """Return the content of the <answer> tags around an answer, which a chain of thought may precede."""
    tagged = _ANSWER_TAG.fullmatch(answer)
    if tagged:
        return as_text(tagged[1].strip(), field)
    return answer
