"""Rewrites of numbers, fractions, percentages and quantities."""

from __future__ import annotations

import re

from lit_rlvr.commands.check.gold import UNITS, Gold, bare_number, fraction_parts, quantity_parts, value_of_answer
from lit_rlvr.commands.check.rewrites.registry import (
    NUMBER_KINDS,
    add_forms,
    breaks,
    decimal,
    keeps,
    other_answer,
    substitute,
)
from lit_rlvr.speech.prompts import prompt_text


@keeps("number")
def trailing_zero(gold: Gold) -> str:
    """Write 7 as 7.0, and 0.5 as 0.50."""
    return gold.answer + ("0" if "." in gold.answer else ".0")


add_forms(keeps("number"), {"plus sign": ("^(?=[1-9.])", "+")}, substitute)


def _grouped(gold: Gold, separator: str) -> str | None:
    digits = gold.answer.replace(",", "")
    if re.fullmatch(r"-?[1-9]\d{3,}", digits):
        return f"{int(digits):,}".replace(",", separator)
    return None


add_forms(
    keeps("number"),
    {"thousands comma": ",", "thousands comma in latex": "{,}", "thousands space": "\\,"},
    _grouped,
)


add_forms(keeps("number"), {"no thousands comma": (",", "")}, substitute)


@keeps("number")
def as_a_fraction(gold: Gold) -> str | None:
    """Write 0.5 as \\frac{1}{2}."""
    value = value_of_answer(gold.answer)
    if value is None or value.denominator == 1:
        return None
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


add_forms(
    keeps("number"),
    {
        "labelled": "x = {answer}",
        "text command": "\\text{{{answer}}}",
        "math command": "\\mathbf{{{answer}}}",
    },
)


add_forms(
    keeps("number", "fraction", "percent", "tuple", "list"),
    {"minus of unicode": ("-", "\N{MINUS SIGN}")},
    substitute,
)

add_forms(
    keeps("number", "percent", "tuple", "list"),
    {
        "full width": "\N{FULLWIDTH DIGIT ZERO}",
        "digits of another script": "\N{DEVANAGARI DIGIT ZERO}",
    },
    lambda gold, zero: gold.answer.translate({ord("0") + k: ord(zero) + k for k in range(10)}),
)


add_forms(keeps("percent"), {"percent in words": (r"\s*\\?%$", " percent")}, substitute)


@keeps("percent")
def percent_sign(gold: Gold) -> str:
    """Write 50\\% as 50%, and 50% as 50\\%."""
    return bare_number(gold.answer) + ("%" if "\\" in gold.answer else "\\%")


def _fraction(gold: Gold, form: str) -> str | None:
    """Put numerator, denominator, and the denominator plus 1 into a form, after the sign."""
    parts = fraction_parts(gold.answer)
    return parts and ("-" if parts[0] < 0 else "") + form.format(abs(parts[0]), parts[1], parts[1] + 1)


add_forms(
    keeps("fraction"),
    {"slash": "{}/{}", "frac": "\\frac{{{}}}{{{}}}", "dfrac": "\\dfrac{{{}}}{{{}}}"},
    _fraction,
)


@keeps("fraction")
def frac_without_braces(gold: Gold) -> str | None:
    """Write 1/2 as \\frac12."""
    if all(abs(part) < 10 for part in fraction_parts(gold.answer) or (10,)):
        return _fraction(gold, "\\frac{}{}")
    return None


@keeps("fraction")
def as_a_decimal(gold: Gold) -> str | None:
    """Write 1/2 as 0.5 if it has at most six decimals."""
    value = value_of_answer(gold.answer)
    if value is None:
        return None
    return decimal(value)


def _quantity(gold: Gold, form: str) -> str | None:
    parts = quantity_parts(gold.answer)
    return parts and form.format(*parts)


add_forms(
    keeps("quantity"),
    {
        "unit in text": "{}\\text{{ {}}}",
        "unit in roman": "{}\\,\\mathrm{{{}}}",
        "unit after a space": "{} {}",
    },
    _quantity,
)


add_forms(breaks("number"), {"next number": other_answer}, lambda gold, find: find(gold))


@breaks(*NUMBER_KINDS)
def another_first_digit(gold: Gold) -> str | None:
    """Change the first digit that is not 0."""
    match = re.search(r"[1-9]", gold.answer)
    return match and gold.answer[: match.start()] + str(int(match[0]) % 9 + 1) + gold.answer[match.end() :]


@breaks(*NUMBER_KINDS)
def another_sign(gold: Gold) -> str | None:
    """Write 7 as -7."""
    is_zero = not re.search(r"[1-9]", bare_number(gold.answer))
    if is_zero:
        return None
    if gold.answer[0] == "-":
        return gold.answer[1:]
    return f"-{gold.answer.lstrip('+')}"


@breaks("number")
def ten_times(gold: Gold) -> str | None:
    """Write 7 as 70."""
    value = value_of_answer(gold.answer)
    if value:
        return decimal(10 * value)
    return None


add_forms(breaks("number"), {"one digit before": (r"^(\d+)$", r"1\1")}, substitute)


add_forms(
    breaks("number"),
    {
        "digits reversed": (r"^\d+$", lambda found: found[0][::-1]),
        "decimals added": (r"^(-*\d+)$", r"\1.5"),
    },
    substitute,
)


@breaks("number")
def percent_added(gold: Gold) -> str | None:
    """Write 7 as 7%, where the question does not speak of percent."""
    mention = re.search(r"%|percent", prompt_text(gold.sample.prompt), re.IGNORECASE)
    if mention or value_of_answer(gold.answer) == 0:
        return None
    return f"{gold.answer}\\%"


add_forms(breaks("number"), {"pi added": (r"^(.*[1-9].*)$", r"\1\\pi")}, substitute)


@breaks("number")
def power_added(gold: Gold) -> str | None:
    """Write 7 as 7^2."""
    if value_of_answer(gold.answer) in (0, 1) or gold.answer[0] == "-":
        return None
    return f"{gold.answer}^2"


add_forms(breaks("number", "fraction", "expression"), {"unevaluated sum": "{answer} + 1"})

add_forms(
    breaks("number"),
    {
        "inequality": "x < {answer}",
        "not equal": "x \\neq {answer}",
    },
)


@breaks("fraction")
def upside_down(gold: Gold) -> str | None:
    """Write 1/2 as 2/1."""
    above, below = fraction_parts(gold.answer) or (0, 1)
    if above > 0:
        return f"\\frac{{{below}}}{{{above}}}"
    return None


add_forms(breaks("fraction"), {"only the numerator": "{0}", "another denominator": "{0}/{2}"}, _fraction)


@breaks("quantity")
def another_unit(gold: Gold) -> str | None:
    """Write 5 cm as 5 m."""
    number, unit = quantity_parts(gold.answer) or ("0", "m")
    if value_of_answer(number) == 0:
        return None
    return f"{number} {UNITS[unit]}"


add_forms(breaks("quantity"), {"unit squared": "{}\\text{{ {}}}^2"}, _quantity)
