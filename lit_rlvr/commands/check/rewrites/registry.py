"""The registry of rewrites, and what several of them use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from string import ascii_uppercase
from typing import Any, get_args

from lit_rlvr.commands.check.gold import Gold, Kind, comparable, may_answer, value_of_answer

Rewriter = Callable[[Gold], str | None]

ALL_KINDS: tuple[Kind, ...] = get_args(Kind)
PROGRAMS: tuple[Kind, ...] = ("sql", "code")
ANSWER_KINDS = tuple(kind for kind in ALL_KINDS if kind not in PROGRAMS)
NUMBER_KINDS: tuple[Kind, ...] = ("number", "fraction", "percent", "quantity")
ITEM_KINDS: tuple[Kind, ...] = ("set", "interval", "tuple", "list")
NUMERIC_KINDS: tuple[Kind, ...] = (*NUMBER_KINDS, *ITEM_KINDS, "expression")


@dataclass(frozen=True)
class Rewrite:
    """A rewrite of gold answers.

    Args:
        name: the kind of error that it finds, in a few words.
        keeps: True if the rewritten text answers as the reference does, False if it certainly does not.
        kinds: the kinds of answers that it applies to.
        whole: True if it makes a whole completion, not only an answer.
        apply: returns the completion, or None.
    """

    name: str
    keeps: bool
    kinds: tuple[Kind, ...]
    whole: bool
    apply: Rewriter


REWRITES: list[Rewrite] = []
"""All rewrites, in the order in which they are registered."""


def keeps(*kinds: Kind, whole: bool = False) -> Callable[[Rewriter], Rewriter]:
    """Register a rewrite that keeps the meaning of answers of some kinds.

    Args:
        whole: the function returns a whole completion, not only an answer.
    """
    return lambda function: _registered(function, True, kinds, whole)


def breaks(*kinds: Kind, whole: bool = False) -> Callable[[Rewriter], Rewriter]:
    """Register a rewrite that breaks the meaning of answers of some kinds; see `keeps`."""
    return lambda function: _registered(function, False, kinds, whole)


def fill(gold: Gold, form: str) -> str | None:
    """Put an answer into a form: {answer} is the answer, {text} the completion with it."""
    return form.format(answer=gold.answer, text=gold.text)


def fill_boxed(gold: Gold, form: str) -> str | None:
    """Put an answer into a form if the reward reads boxes."""
    if gold.is_boxed:
        return fill(gold, form)
    return None


def fill_marked(gold: Gold, form: str) -> str | None:
    """Put an answer into a form if a mark sets it off."""
    if gold.is_marked:
        return fill(gold, form)
    return None


def substitute(gold: Gold, change: tuple[str, Any]) -> str:
    """Replace a pattern in an answer: (regular expression, replacement or function of the match)."""
    return re.sub(*change, gold.answer)


def add_forms(
    register: Callable[[Rewriter], Rewriter],
    forms: Mapping[str, Any],
    write: Callable[[Gold, Any], str | None] = fill,
) -> None:
    """Register rewrites that differ in one value only, such as a text.

    Args:
        register: `keeps(...)` or `breaks(...)`.
        forms: name -> value.
        write: writes an answer with the value.
    """
    for name, form in forms.items():

        def rewrite(gold: Gold, form: Any = form) -> str | None:
            return write(gold, form)

        rewrite.__name__ = name
        register(rewrite)


def _registered(function: Rewriter, keeps: bool, kinds: tuple[Kind, ...], whole: bool) -> Rewriter:
    def apply(gold: Gold) -> str | None:
        written = function(gold)
        if written is None or whole:
            return written
        if keeps and written == gold.answer:
            return None
        if not keeps and gold.kind not in PROGRAMS and _is_a_reference(written, gold):
            return None
        return gold.write(written)

    REWRITES.append(Rewrite(function.__name__.replace("_", " "), keeps, kinds, whole, apply))
    return function


def _is_a_reference(answer: str, gold: Gold) -> bool:
    """Return True if a broken answer is, by value or by letters, one of the references after all."""
    value = value_of_answer(answer)
    for reference in (gold.answer, *gold.sample.references):
        if comparable(answer) == comparable(reference) or (value is not None and value == value_of_answer(reference)):
            return True
    return False


def decimal(value: Fraction) -> str | None:
    """Return a value with at most six decimals; None if it needs more."""
    places = next((k for k in range(7) if (value * 10**k).denominator == 1), None)
    if places is None:
        return None
    return f"{float(value):.{places}f}"


def other_answer(gold: Gold) -> str | None:
    """Return an answer of another row that is certainly wrong here, or of a number the next one."""
    value = value_of_answer(gold.answer)
    if gold.kind == "number":
        if value is not None and abs(value) < 10_000:
            return decimal(value + 1)
        return None
    return next(iter(other_answers(gold)), None)


def other_letters(gold: Gold) -> list[str]:
    """Return the letters of a choice's wrong options."""
    wrong_letters = []
    for letter in ascii_uppercase[: len(gold.sample.options) or 4]:
        if letter != gold.answer:
            wrong_letters.append(letter)
    return wrong_letters


def other_answers(gold: Gold) -> tuple[str, ...]:
    """Return up to three answers that are certainly wrong, in a fixed order."""
    if gold.kind == "choice":
        return tuple(other_letters(gold)[:3])
    if gold.kind == "yes_no":
        return ("no" if gold.answer.lower() == "yes" else "yes", "unknown")
    value = value_of_answer(gold.answer)
    if gold.kind == "number" and value is not None:
        close = (int(value) - 1, int(value) + 1, int(value) + 2)
        return tuple(str(number) for number in close if number != value)
    answers = dict.fromkeys(other for other in gold.others if not may_answer(other, gold))
    return tuple(answers)[:3]
