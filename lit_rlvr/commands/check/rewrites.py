"""The rewrites of the check-up of a reward: pure functions of a gold answer, each of which keeps or breaks its meaning.

A rewrite names the kinds of answers for which it certainly does so, and returns None where it does not apply.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from string import ascii_uppercase
from typing import get_args

from lit_rlvr.commands.check.gold import (
    UNITS,
    Gold,
    Kind,
    bare_number,
    chosen_option,
    comparable,
    fraction_parts,
    may_answer,
    quantity_parts,
    value_of_answer,
    words_of,
)
from lit_rlvr.commands.report.prompts import prompt_text

Rewriter = Callable[[Gold], str | None]

ALL: tuple[Kind, ...] = get_args(Kind)
PROGRAMS: tuple[Kind, ...] = ("sql", "code")
ANSWERS = tuple(kind for kind in ALL if kind not in PROGRAMS)
NUMBERS: tuple[Kind, ...] = ("number", "fraction", "percent", "quantity")
ITEMS: tuple[Kind, ...] = ("set", "interval", "tuple", "list")
NUMERIC: tuple[Kind, ...] = (*NUMBERS, *ITEMS, "expression")


@dataclass(frozen=True)
class Rewrite:
    """A rewrite of gold answers.

    Args:
        name: the kind of error that it finds, in a few words.
        keeps: True if the rewritten text answers as the reference does, False if it certainly does not.
        kinds: the kinds of answers that it applies to.
        apply: returns the completion, or None.
    """

    name: str
    keeps: bool
    kinds: tuple[Kind, ...]
    apply: Rewriter


REWRITES: list[Rewrite] = []
"""All rewrites, in the order of this file."""


def keeps(*kinds: Kind, whole: bool = False) -> Callable[[Rewriter], Rewriter]:
    """Register a rewrite that keeps the meaning of answers of some kinds.

    Args:
        whole: the function returns a whole completion, not only an answer.
    """
    return lambda function: _registered(function, True, kinds, whole)


def breaks(*kinds: Kind, whole: bool = False) -> Callable[[Rewriter], Rewriter]:
    """Register a rewrite that breaks the meaning of answers of some kinds; see `keeps`."""
    return lambda function: _registered(function, False, kinds, whole)


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

    REWRITES.append(Rewrite(function.__name__.replace("_", " "), keeps, kinds, apply))
    return function


def _is_a_reference(answer: str, gold: Gold) -> bool:
    """Return True if a broken answer is, by value or by letters, one of the references after all."""
    value = value_of_answer(answer)
    return any(
        comparable(answer) == comparable(reference) or (value is not None and value == value_of_answer(reference))
        for reference in (gold.answer, *gold.sample.references)
    )


def decimal(value: Fraction) -> str | None:
    """Return a value with at most six decimals; None if it needs more."""
    places = next((k for k in range(7) if (value * 10**k).denominator == 1), None)
    return None if places is None else f"{float(value):.{places}f}"


def other_answer(gold: Gold) -> str | None:
    """Return an answer of another row that is certainly wrong here, or of a number the next one."""
    if gold.kind == "choice":
        return next(iter(other_letters(gold)), None)
    if gold.kind == "yes_no":
        return "no" if gold.answer.lower() == "yes" else "yes"
    if gold.kind == "number":
        return next_number(gold)
    return next((other for other in gold.others if not may_answer(other, gold)), None)


def other_letters(gold: Gold) -> list[str]:
    """Return the letters of a choice's wrong options."""
    return [letter for letter in ascii_uppercase[: len(gold.sample.options) or 4] if letter != gold.answer]


def in_digits(answer: str, zero: str) -> str:
    """Return an answer with the digits of the script whose digit zero is given."""
    return answer.translate({ord("0") + k: ord(zero) + k for k in range(10)})


# ---- around any answer: what keeps its meaning -------------------------------------------------------------------


@keeps(*ALL, whole=True)
def gold_itself(gold: Gold) -> str:
    """Return the gold completion unchanged."""
    return gold.text


@keeps(*ALL, whole=True)
def prose_before(gold: Gold) -> str:
    """Put prose before the answer."""
    lead = "So this is the final answer:\n\n" if gold.is_marked else "The answer is "
    return f"First I look at what is given, then I work it out step by step.\n\n{lead}{gold.text}"


@keeps(*ALL, whole=True)
def long_prose_before(gold: Gold) -> str:
    """Put 20,000 characters of prose before the answer."""
    return f"{'I go through it once more, slowly and with care. ' * 400}\n\n{prose_before(gold)}"


@keeps(*ALL, whole=True)
def prose_after(gold: Gold) -> str | None:
    """Put a sentence after an answer that a mark sets off."""
    return f"{gold.text}\n\nThis is what the question asks for." if gold.is_marked else None


@keeps(*ALL, whole=True)
def thought_before(gold: Gold) -> str:
    """Put a closed thought before the answer."""
    return f"<think>\nI try it in another way, too. It agrees.\n</think>\n\n{gold.text}"


@keeps(*ANSWERS, whole=True)
def wrong_answer_in_the_thought(gold: Gold) -> str | None:
    """Try another answer in a closed thought before the right one."""
    other = other_answer(gold)
    return other and f"<think>\nPerhaps {gold.write(other)}? No, that is wrong.\n</think>\n\n{gold.text}"


@keeps(*ANSWERS, whole=True)
def answer_tags(gold: Gold) -> str | None:
    """Put the answer into `<answer>` tags."""
    return None if "<answer>" in gold.text else f"<answer>{gold.text}</answer>"


@keeps(*ANSWERS, whole=True)
def tags_on_lines_of_their_own(gold: Gold) -> str | None:
    """Put the answer into `<answer>` tags, each on its line."""
    return None if "<answer>" in gold.text else f"<answer>\n{gold.text}\n</answer>\n"


@keeps(*ANSWERS, whole=True)
def bold_label(gold: Gold) -> str:
    """Put the label "Answer" in bold before the answer."""
    return f"**Answer:** {gold.text}"


@keeps(*ANSWERS, whole=True)
def bold_answer(gold: Gold) -> str | None:
    """Put the answer in bold."""
    return f"**{gold.text}**" if gold.is_boxed else None


@keeps(*ALL, whole=True)
def heading(gold: Gold) -> str:
    """Put a Markdown heading before the answer."""
    return f"### Final answer\n\n{gold.text}"


@keeps(*ALL, whole=True)
def space_around(gold: Gold) -> str:
    """Put spaces and line breaks around the answer."""
    return f"\n\n  {gold.text}  \n\n"


@keeps(*ANSWERS, whole=True)
def dollars_around_the_box(gold: Gold) -> str | None:
    """Put the box into `$`."""
    return f"${gold.text}$" if gold.is_boxed else None


@keeps(*ANSWERS, whole=True)
def display_around_the_box(gold: Gold) -> str | None:
    """Put the box into `\\[ \\]` with a full stop."""
    return f"Therefore\n\\[\n{gold.text}.\n\\]" if gold.is_boxed else None


@keeps(*ANSWERS, whole=True)
def full_stop_after_the_box(gold: Gold) -> str | None:
    """End the sentence after the box."""
    return f"The final answer is {gold.text}." if gold.is_boxed else None


@keeps(*ANSWERS, whole=True)
def the_same_box_twice(gold: Gold) -> str | None:
    """Repeat the box at the end."""
    return f"We get {gold.text}.\n\nThe final answer is {gold.text}." if gold.is_boxed else None


@keeps(*ANSWERS, whole=True)
def another_box_before(gold: Gold) -> str | None:
    """Box a wrong answer, then take it back."""
    other = other_answer(gold) if gold.is_boxed else None
    return other and f"At first {gold.write(other)} seems right, but it is wrong.\n\nThe final answer is {gold.text}"


@keeps(*ANSWERS)
def space_in_the_box(gold: Gold) -> str | None:
    """Put spaces between the box and the answer."""
    return f" {gold.answer} " if gold.is_boxed else None


@keeps(*NUMERIC)
def dollars_in_the_box(gold: Gold) -> str | None:
    """Put the answer in the box into `$`."""
    return f"${gold.answer}$" if gold.is_boxed else None


# ---- around any answer: what breaks its meaning ------------------------------------------------------------------


@breaks(*ALL, whole=True)
def empty(gold: Gold) -> str:
    """Write nothing."""
    return ""


@breaks(*ALL, whole=True)
def only_space(gold: Gold) -> str:
    """Write spaces and line breaks."""
    return " \n\n\t \n"


@breaks(*ALL, whole=True)
def no_answer(gold: Gold) -> str:
    """Write prose without an answer."""
    return "I look at what is given. Then I work it out step by step, but I cannot finish."


@breaks(*ANSWERS, whole=True)
def empty_box(gold: Gold) -> str | None:
    """Leave the box empty."""
    return "\\boxed{}" if gold.is_boxed else None


@breaks(*ANSWERS, whole=True)
def answer_taken_back(gold: Gold) -> str | None:
    """Box the right answer, then another one."""
    other = other_answer(gold) if gold.is_boxed else None
    return other and f"At first {gold.text} seems right, but it is wrong.\n\nThe final answer is {gold.write(other)}"


@breaks(*ANSWERS, whole=True)
def every_box_at_once(gold: Gold) -> str | None:
    """Box several answers, the right one among them."""
    others = _other_answers(gold) if gold.is_boxed else ()
    return " or ".join([gold.write(others[0]), gold.text, *map(gold.write, others[1:])]) if len(others) > 1 else None


@breaks(*ANSWERS, whole=True)
def answer_only_in_the_thought(gold: Gold) -> str | None:
    """Answer in a closed thought only."""
    return f"<think>\n{gold.text}\n</think>\n\nI do not know." if gold.is_marked else None


@breaks(*ANSWERS)
def all_at_once(gold: Gold) -> str | None:
    """Name several answers with "or" between them, the right one among them."""
    others = _other_answers(gold)
    return " or ".join([others[0], gold.answer, *others[1:]]) if len(others) > 1 else None


@breaks(*ANSWERS)
def all_at_once_in_a_list(gold: Gold) -> str | None:
    """Name several answers with commas between them, the right one among them."""
    others = _other_answers(gold)
    return ", ".join([others[0], gold.answer, *others[1:]]) if len(others) > 1 else None


@breaks("text", "number", "choice", "yes_no")
def negated(gold: Gold) -> str:
    """Say that the answer is not the right one."""
    return f"not {gold.answer}"


@breaks("text", "choice", "yes_no", "set", "tuple", "expression")
def answer_of_another_row(gold: Gold) -> str | None:
    """Give the answer of another row, or of a choice the first wrong letter."""
    return other_answer(gold)


@breaks(*NUMBERS, whole=True)
def very_long(gold: Gold) -> str | None:
    """Write thousands of numbers, the right one perhaps among them."""
    return None if may_answer("2999", gold) else " ".join(map(str, range(-100, 3000)))


def _other_answers(gold: Gold) -> tuple[str, ...]:
    """Return up to three answers that are certainly wrong, in a fixed order."""
    if gold.kind == "choice":
        return tuple(other_letters(gold)[:3])
    if gold.kind == "yes_no":
        return (other_answer(gold) or "", "unknown")
    value = value_of_answer(gold.answer)
    if gold.kind == "number" and value is not None:
        return tuple(str(int(value) + k) for k in (-1, 1, 2) if int(value) + k != value)
    wrong = dict.fromkeys(other for other in gold.others if not may_answer(other, gold))
    return tuple(wrong)[:3]


# ---- numbers -----------------------------------------------------------------------------------------------------


@keeps("number")
def trailing_zero(gold: Gold) -> str:
    """Write 7 as 7.0, and 0.5 as 0.50."""
    return gold.answer + ("0" if "." in gold.answer else ".0")


@keeps("number")
def plus_sign(gold: Gold) -> str | None:
    """Write 7 as +7."""
    return None if gold.answer[0] in "+-0" else f"+{gold.answer}"


@keeps("number")
def thousands_comma(gold: Gold) -> str | None:
    """Write 12345 as 12,345."""
    return _grouped(gold, ",")


@keeps("number")
def thousands_comma_in_latex(gold: Gold) -> str | None:
    """Write 12345 as 12{,}345."""
    return _grouped(gold, "{,}")


@keeps("number")
def thousands_space(gold: Gold) -> str | None:
    """Write 12345 as 12\\,345."""
    return _grouped(gold, "\\,")


@keeps("number")
def no_thousands_comma(gold: Gold) -> str | None:
    """Write 12,345 as 12345."""
    return gold.answer.replace(",", "")


def _grouped(gold: Gold, separator: str) -> str | None:
    digits = gold.answer.replace(",", "")
    return f"{int(digits):,}".replace(",", separator) if re.fullmatch(r"-?[1-9]\d{3,}", digits) else None


@keeps("number")
def scientific(gold: Gold) -> str | None:
    """Write 1200 as 1.2 \\times 10^{3}."""
    digits = gold.answer.replace(",", "")
    if not re.fullmatch(r"-?[1-9]\d{3,11}", digits):
        return None
    power = len(digits.lstrip("-")) - 1
    return (
        f"{decimal(Fraction(int(digits), 10**power))} \\times 10^{{{power}}}"
        if digits.endswith("0" * (power - 5))
        else None
    )


@keeps("number")
def as_a_fraction(gold: Gold) -> str | None:
    """Write 0.5 as \\frac{1}{2}."""
    value = value_of_answer(gold.answer)
    if value is None or value.denominator == 1:
        return None
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


@keeps("number")
def labelled(gold: Gold) -> str:
    """Write 7 as x = 7."""
    return f"x = {gold.answer}"


@keeps("number", "fraction", "percent", "tuple", "list")
def minus_of_unicode(gold: Gold) -> str:
    """Write the minus as U+2212."""
    return gold.answer.replace("-", "\N{MINUS SIGN}")


@keeps("number", "percent", "tuple", "list")
def full_width(gold: Gold) -> str:
    """Write full-width digits."""
    return in_digits(gold.answer, "\N{FULLWIDTH DIGIT ZERO}")


@keeps("number", "percent", "tuple", "list")
def digits_of_another_script(gold: Gold) -> str:
    """Write Devanagari digits."""
    return in_digits(gold.answer, "\N{DEVANAGARI DIGIT ZERO}")


@keeps("number")
def text_command(gold: Gold) -> str:
    """Write 7 as \\text{7}."""
    return f"\\text{{{gold.answer}}}"


@keeps("number")
def math_command(gold: Gold) -> str:
    """Write 7 as \\mathbf{7}."""
    return f"\\mathbf{{{gold.answer}}}"


@keeps("percent")
def percent_in_words(gold: Gold) -> str:
    """Write 50% as 50 percent."""
    return f"{bare_number(gold.answer)} percent"


@keeps("percent")
def percent_sign(gold: Gold) -> str:
    """Write 50\\% as 50%, and 50% as 50\\%."""
    return bare_number(gold.answer) + ("%" if "\\" in gold.answer else "\\%")


@keeps("fraction")
def slash(gold: Gold) -> str | None:
    """Write \\frac{1}{2} as 1/2."""
    return _fraction(gold, "{}/{}")


@keeps("fraction")
def frac(gold: Gold) -> str | None:
    """Write 1/2 as \\frac{1}{2}."""
    return _fraction(gold, "\\frac{{{}}}{{{}}}")


@keeps("fraction")
def dfrac(gold: Gold) -> str | None:
    """Write 1/2 as \\dfrac{1}{2}."""
    return _fraction(gold, "\\dfrac{{{}}}{{{}}}")


@keeps("fraction")
def frac_without_braces(gold: Gold) -> str | None:
    """Write 1/2 as \\frac12."""
    return (
        _fraction(gold, "\\frac{}{}") if all(abs(part) < 10 for part in fraction_parts(gold.answer) or (10,)) else None
    )


@keeps("fraction")
def vulgar_fraction(gold: Gold) -> str | None:
    """Write 1/2 as one character."""
    signs = {(1, 2): "\u00bd", (1, 3): "\u2153", (2, 3): "\u2154", (1, 4): "\u00bc", (3, 4): "\u00be", (1, 5): "\u2155"}
    return signs.get(fraction_parts(gold.answer) or (0, 0))


@keeps("fraction")
def as_a_decimal(gold: Gold) -> str | None:
    """Write 1/2 as 0.5 if it has at most six decimals."""
    value = value_of_answer(gold.answer)
    return None if value is None else decimal(value)


@keeps("fraction")
def mixed_number(gold: Gold) -> str | None:
    """Write 3/2 as 1\\frac{1}{2}."""
    above, below = fraction_parts(gold.answer) or (0, 1)
    whole, rest = divmod(above, below)
    return f"{whole}\\frac{{{rest}}}{{{below}}}" if whole > 0 and rest else None


def _fraction(gold: Gold, form: str) -> str | None:
    parts = fraction_parts(gold.answer)
    return parts and ("-" if parts[0] < 0 else "") + form.format(abs(parts[0]), parts[1])


@keeps("quantity")
def unit_in_text(gold: Gold) -> str | None:
    """Write 5 cm as 5\\text{ cm}."""
    return _quantity(gold, "{}\\text{{ {}}}")


@keeps("quantity")
def unit_in_roman(gold: Gold) -> str | None:
    """Write 5 cm as 5\\,\\mathrm{cm}."""
    return _quantity(gold, "{}\\,\\mathrm{{{}}}")


@keeps("quantity")
def unit_after_a_space(gold: Gold) -> str | None:
    """Write 5cm as 5 cm."""
    return _quantity(gold, "{} {}")


@keeps("quantity")
def converted_unit(gold: Gold) -> str | None:
    """Write 5 m as 0.005 km."""
    number, unit = quantity_parts(gold.answer) or ("0", "m")
    other, size = UNITS[unit]
    value = decimal(Fraction(number.replace(",", "")) / size)
    return value and f"{value} {other}"


def _quantity(gold: Gold, form: str) -> str | None:
    parts = quantity_parts(gold.answer)
    return parts and form.format(*parts)


@breaks("number")
def next_number(gold: Gold) -> str | None:
    """Write 7 as 8."""
    value = value_of_answer(gold.answer)
    return decimal(value + 1) if value is not None and abs(value) < 10_000 else None


@breaks(*NUMBERS)
def another_first_digit(gold: Gold) -> str | None:
    """Change the first digit that is not 0."""
    found = re.search(r"[1-9]", gold.answer)
    return found and gold.answer[: found.start()] + str(int(found[0]) % 9 + 1) + gold.answer[found.end() :]


@breaks(*NUMBERS)
def another_sign(gold: Gold) -> str | None:
    """Write 7 as -7."""
    is_zero = not re.search(r"[1-9]", bare_number(gold.answer))
    return None if is_zero else gold.answer[1:] if gold.answer[0] == "-" else f"-{gold.answer.lstrip('+')}"


@breaks("number")
def ten_times(gold: Gold) -> str | None:
    """Write 7 as 70."""
    value = value_of_answer(gold.answer)
    return decimal(10 * value) if value else None


@breaks("number")
def one_digit_before(gold: Gold) -> str | None:
    """Write 7 as 17."""
    return f"1{gold.answer}" if gold.answer.isdigit() else None


@breaks("number")
def digits_reversed(gold: Gold) -> str | None:
    """Write 12 as 21."""
    return gold.answer[::-1] if gold.answer.isdigit() else None


@breaks("number")
def decimals_added(gold: Gold) -> str | None:
    """Write 7 as 7.5."""
    return f"{gold.answer}.5" if gold.answer.lstrip("-").isdigit() else None


@breaks("number")
def percent_added(gold: Gold) -> str | None:
    """Write 7 as 7%, where the question does not speak of percent."""
    asked = re.search(r"%|percent", prompt_text(gold.sample.prompt), re.IGNORECASE)
    return None if asked or value_of_answer(gold.answer) == 0 else f"{gold.answer}\\%"


@breaks("number")
def pi_added(gold: Gold) -> str | None:
    """Write 7 as 7\\pi."""
    return None if value_of_answer(gold.answer) == 0 else f"{gold.answer}\\pi"


@breaks("number")
def power_added(gold: Gold) -> str | None:
    """Write 7 as 7^2."""
    return None if value_of_answer(gold.answer) in (0, 1) or gold.answer[0] == "-" else f"{gold.answer}^2"


@breaks("number", "fraction", "expression")
def unevaluated_sum(gold: Gold) -> str:
    """Add 1 to the answer without adding up: 7 + 1."""
    return f"{gold.answer} + 1"


@breaks("number")
def inequality(gold: Gold) -> str:
    """Write 7 as x < 7."""
    return f"x < {gold.answer}"


@breaks("number")
def not_equal(gold: Gold) -> str:
    """Write 7 as x \\neq 7."""
    return f"x \\neq {gold.answer}"


@breaks("number")
def something_before_the_number(gold: Gold) -> str | None:
    """Write 7 as 1/7."""
    return None if value_of_answer(gold.answer) in (0, 1, -1) or "," in gold.answer else f"1/{gold.answer}"


@breaks("fraction")
def upside_down(gold: Gold) -> str | None:
    """Write 1/2 as 2/1."""
    above, below = fraction_parts(gold.answer) or (0, 1)
    return f"\\frac{{{below}}}{{{above}}}" if above > 0 else None


@breaks("fraction")
def only_the_numerator(gold: Gold) -> str | None:
    """Write 2/3 as 2."""
    above, _ = fraction_parts(gold.answer) or (0, 1)
    return str(above) if above else None


@breaks("fraction")
def another_denominator(gold: Gold) -> str | None:
    """Write 1/2 as 1/3."""
    above, below = fraction_parts(gold.answer) or (0, 1)
    return f"{above}/{below + 1}" if above else None


@breaks("quantity")
def another_unit(gold: Gold) -> str | None:
    """Write 5 cm as 5 m."""
    number, unit = quantity_parts(gold.answer) or ("0", "m")
    return None if value_of_answer(number) == 0 else f"{number} {UNITS[unit][0]}"


@breaks("quantity")
def unit_squared(gold: Gold) -> str | None:
    """Write 5 cm as 5 cm^2."""
    return _quantity(gold, "{}\\text{{ {}}}^2")


# ---- expressions -------------------------------------------------------------------------------------------------


@keeps("expression")
def dfrac_in_an_expression(gold: Gold) -> str:
    """Write \\frac as \\dfrac."""
    return gold.answer.replace("\\frac", "\\dfrac")


@keeps("expression")
def terms_in_another_order(gold: Gold) -> str | None:
    """Write a + b as b + a."""
    terms = _terms(gold.answer)
    return " + ".join(reversed(terms)) if terms else None


@keeps("expression")
def parentheses_around(gold: Gold) -> str:
    """Put an expression into parentheses."""
    return f"({gold.answer})"


@keeps("expression")
def left_and_right(gold: Gold) -> str | None:
    """Write ( ) as \\left( \\right)."""
    if "\\left" in gold.answer or "\\big" in gold.answer.lower():
        return None
    return gold.answer.replace("(", "\\left(").replace(")", "\\right)")


@breaks("expression")
def a_missing_term(gold: Gold) -> str | None:
    """Leave out the last term of a sum."""
    terms = _terms(gold.answer)
    return " + ".join(terms[:-1]) if terms else None


@breaks("expression")
def twice_the_expression(gold: Gold) -> str:
    """Write x as 2 (x)."""
    return f"2 \\cdot ({gold.answer})"


@breaks("expression")
def expression_with_another_sign(gold: Gold) -> str:
    """Write x as -(x)."""
    return f"-({gold.answer})"


def _terms(answer: str) -> list[str]:
    """Return the terms of a plain sum; none if it has brackets, or minus signs."""
    terms = [term.strip() for term in answer.split("+")]
    is_plain = len(terms) > 1 and all(terms) and not re.search(r"[-()\[\]{}]|\\frac|\\sqrt", answer)
    return terms if is_plain and "0" not in terms else []


# ---- sets, intervals, tuples and lists ---------------------------------------------------------------------------


@keeps(*ITEMS)
def no_space_after_commas(gold: Gold) -> str:
    """Write (1, 2) as (1,2)."""
    return gold.with_items(gold.items).replace(", ", ",")


@keeps(*ITEMS)
def space_after_commas(gold: Gold) -> str:
    """Write (1,2) as (1, 2)."""
    return gold.with_items(gold.items)


@keeps("set", "interval", "tuple")
def sized_brackets(gold: Gold) -> str:
    """Write (1, 2) as \\left(1, 2\\right)."""
    opening, closing = (f"\\{bracket}" if bracket in "{}" else bracket for bracket in gold.brackets)
    return f"\\left{opening}{', '.join(gold.items)}\\right{closing}"


@keeps("set")
def elements_in_another_order(gold: Gold) -> str:
    """Write {1, 2} as {2, 1}."""
    return gold.with_items(gold.items[::-1])


@keeps("list")
def a_word_between(gold: Gold) -> str:
    """Write 1, 2 as 1 and 2."""
    return f"{', '.join(gold.items[:-1])} \\text{{ and }} {gold.items[-1]}"


@keeps("list", whole=True)
def a_box_for_each(gold: Gold) -> str | None:
    """Box each part of a list."""
    return " and ".join(map(gold.write, gold.items)) if gold.is_boxed else None


@keeps("interval")
def as_inequalities(gold: Gold) -> str:
    """Write [1, 2) as 1 \\le x < 2."""
    low, high = gold.items
    signs = ["\\le" if bracket in "[]" else "<" for bracket in gold.brackets]
    left = "" if "\\infty" in low else f"{low} {signs[0]} "
    right = "" if "\\infty" in high else f" {signs[1]} {high}"
    mirrored = "\\ge" if gold.brackets[0] == "[" else ">"
    return f"{left}x{right}" if right else f"x {mirrored} {low}"


@keeps("interval")
def infinity_as_a_character(gold: Gold) -> str:
    """Write \\infty as its character."""
    return gold.answer.replace("\\infty", "\N{INFINITY}")


@breaks("interval")
def another_left_end(gold: Gold) -> str | None:
    """Write [1, 2) as (1, 2)."""
    opening, closing = gold.brackets
    return None if "\\infty" in gold.items[0] else f"{'(' if opening == '[' else '['}{', '.join(gold.items)}{closing}"


@breaks("interval")
def another_right_end(gold: Gold) -> str | None:
    """Write [1, 2) as [1, 2]."""
    opening, closing = gold.brackets
    return None if "\\infty" in gold.items[1] else f"{opening}{', '.join(gold.items)}{')' if closing == ']' else ']'}"


@breaks("tuple", "interval")
def parts_in_another_order(gold: Gold) -> str | None:
    """Write (1, 2) as (2, 1)."""
    return None if gold.items == gold.items[::-1] else gold.with_items(gold.items[::-1])


@breaks(*ITEMS)
def a_missing_part(gold: Gold) -> str | None:
    """Write (1, 2, 3) as (1, 2)."""
    return None if gold.items[-1] in gold.items[:-1] else gold.with_items(gold.items[:-1])


@breaks("set", "tuple", "list")
def one_part_more(gold: Gold) -> str:
    """Write (1, 2) as (1, 2, 97531)."""
    return gold.with_items((*gold.items, "97531"))


@breaks(*ITEMS)
def only_the_first_part(gold: Gold) -> str:
    """Write (1, 2) as 1."""
    return gold.items[0]


@breaks(*ITEMS)
def another_part(gold: Gold) -> str | None:
    """Write (1, 2) as (1, 3)."""
    value = value_of_answer(gold.items[-1])
    other = None if value is None else decimal(value + 1)
    return None if other is None or other in gold.items else gold.with_items((*gold.items[:-1], other))


@breaks(*ITEMS)
def another_sign_of_a_part(gold: Gold) -> str | None:
    """Write (1, 2) as (1, -2)."""
    value = value_of_answer(gold.items[-1])
    other = decimal(-value) if value else None
    return None if other is None or other in gold.items else gold.with_items((*gold.items[:-1], other))


# ---- texts, choices, yes and no ----------------------------------------------------------------------------------


@keeps("text", "yes_no")
def capital_letters(gold: Gold) -> str | None:
    """Write lung as LUNG."""
    return gold.answer.upper() if gold.answer.islower() else None


@keeps("text", "yes_no")
def first_letter_as_a_capital(gold: Gold) -> str | None:
    """Write lung as Lung."""
    return gold.answer.capitalize() if gold.answer.islower() else None


@keeps("text", "yes_no", "choice")
def text_in_latex(gold: Gold) -> str:
    """Write lung as \\text{lung}."""
    return f"\\text{{{gold.answer}}}"


@keeps("text", "yes_no", "choice")
def full_stop(gold: Gold) -> str:
    """Write lung as lung."""
    return f"{gold.answer}."


@keeps("text", "yes_no")
def quotation_marks(gold: Gold) -> str:
    """Write lung as "lung"."""
    return f'"{gold.answer}"'


@keeps("text")
def no_break_space(gold: Gold) -> str:
    """Write the spaces as U+00A0."""
    return gold.answer.replace(" ", "\N{NO-BREAK SPACE}")


@keeps("choice")
def letter_in_parentheses(gold: Gold) -> str:
    """Write B as (B)."""
    return f"({gold.answer})"


@keeps("choice")
def letter_with_a_parenthesis(gold: Gold) -> str:
    """Write B as B)."""
    return f"{gold.answer})"


@keeps("choice")
def small_letter(gold: Gold) -> str:
    """Write B as b."""
    return gold.answer.lower()


@keeps("choice")
def full_width_letter(gold: Gold) -> str:
    """Write B as a full-width letter."""
    return chr(ord(gold.answer) + 0xFEE0)


@keeps("choice")
def bold_letter(gold: Gold) -> str:
    """Write B as **B**."""
    return f"**{gold.answer}**"


@keeps("choice")
def option_and_letter(gold: Gold) -> str:
    """Write B as Option B."""
    return f"Option {gold.answer}"


@keeps("choice")
def letter_and_text(gold: Gold) -> str | None:
    """Write B as B) with the option's text."""
    return f"{gold.answer}) {chosen_option(gold)}" if gold.sample.options else None


@keeps("choice")
def letter_colon_text(gold: Gold) -> str | None:
    """Write B as B: with the option's text."""
    return f"{gold.answer}: {chosen_option(gold)}" if gold.sample.options else None


@keeps("choice")
def text_of_the_option(gold: Gold) -> str | None:
    """Write B as the text of its option, where no other option has that text."""
    options = gold.sample.options
    return chosen_option(gold) if options and options.count(chosen_option(gold)) == 1 else None


@keeps("choice", whole=True)
def sentence_about_the_option(gold: Gold) -> str:
    """Name the letter in a sentence."""
    return f"The correct option is {gold.text}." if gold.is_marked else f"The answer is option {gold.answer}"


@breaks("choice")
def text_of_another_option(gold: Gold) -> str | None:
    """Write B as the text of a wrong option."""
    return _wrong_option(gold)


@breaks("choice")
def letter_with_the_text_of_another(gold: Gold) -> str | None:
    """Write B as B) with the text of a wrong option."""
    option = _wrong_option(gold)
    return option and f"{gold.answer}) {option}"


@breaks("choice")
def letter_that_no_option_has(gold: Gold) -> str:
    """Write B as Z."""
    return "Z"


@breaks("choice")
def word_that_begins_with_the_letter(gold: Gold) -> str | None:
    """Write B as a word that begins with B, which no option contains."""
    word = {"A": "Although", "B": "Because", "C": "Certainly", "D": "Definitely", "E": "Either"}.get(gold.answer)
    return None if word is None or word.lower() in " ".join(gold.sample.options).lower() else word


@breaks("choice")
def two_letters(gold: Gold) -> str | None:
    """Write B as B and A."""
    others = other_letters(gold)
    return f"{gold.answer} and {others[0]}" if others else None


def _wrong_option(gold: Gold) -> str | None:
    """Return the text of a wrong option that shares no word with the right one."""
    known = set(words_of(chosen_option(gold)))
    options = gold.sample.options
    return next((option for option in options if words_of(option) and not known & {*words_of(option)}), None)


@breaks("text")
def letters_in_another_order(gold: Gold) -> str | None:
    """Write CBA as ABC, and lung as gnul."""
    return None if gold.answer == gold.answer[::-1] else gold.answer[::-1]


@breaks("text")
def beginning_of_the_word(gold: Gold) -> str:
    """Write only the first two letters."""
    return gold.answer[:2]


@breaks("yes_no")
def yes_and_no(gold: Gold) -> str:
    """Say both."""
    return "yes and no"


@breaks("yes_no")
def neither_yes_nor_no(gold: Gold) -> str:
    """Say neither."""
    return "It cannot be said"


# ---- SQL ---------------------------------------------------------------------------------------------------------

_KEYWORDS = re.compile(r"\b(select|from|where|group by|order by|having|limit|join|on|and|or|as)\b", re.IGNORECASE)


@keeps("sql")
def semicolon(gold: Gold) -> str:
    """End the query with a semicolon."""
    return f"{gold.answer};"


@keeps("sql")
def comment_before_the_query(gold: Gold) -> str:
    """Put a comment before the query."""
    return f"-- the query\n{gold.answer}"


@keeps("sql")
def keywords_in_small_letters(gold: Gold) -> str | None:
    """Write keywords in small letters, in a query without quotes."""
    return None if _is_quoted(gold) else _KEYWORDS.sub(lambda found: found[0].lower(), gold.answer)


@keeps("sql")
def query_on_several_lines(gold: Gold) -> str | None:
    """Begin a line with each clause, in a query without quotes."""
    clauses = r" +(?=(?:from|where|group by|order by|having|limit)\b)"
    return None if _is_quoted(gold) else re.sub(clauses, "\n", gold.answer, flags=re.IGNORECASE)


@keeps("sql")
def query_in_a_query(gold: Gold) -> str | None:
    """Select everything from the query, unless it is ordered."""
    return None if _is_ordered(gold) else f"SELECT * FROM ({gold.answer})"


@keeps("sql")
def common_table(gold: Gold) -> str | None:
    """Give the query a name with WITH, unless it is ordered."""
    return None if _is_ordered(gold) else f"WITH found AS ({gold.answer}) SELECT * FROM found"


@keeps("sql", whole=True)
def fence_of_sqlite(gold: Gold) -> str:
    """Call the block sqlite."""
    return f"```sqlite\n{gold.answer}\n```"


@keeps("sql", whole=True)
def sql_fence_in_capitals(gold: Gold) -> str:
    """Call the block SQL."""
    return f"```SQL\n{gold.answer}\n```"


@keeps("sql", whole=True)
def sql_fence_without_a_name(gold: Gold) -> str:
    """Leave out the name of the block."""
    return f"```\n{gold.answer}\n```"


@keeps("sql", whole=True)
def result_after_the_query(gold: Gold) -> str:
    """Show a result in a text block after the query."""
    return f"```sql\n{gold.answer}\n```\nResult:\n```text\n1\n```"


@keeps("sql", whole=True)
def earlier_query(gold: Gold) -> str:
    """Try another query in a block before the right one."""
    return f"First the tables:\n```sql\nSELECT name FROM sqlite_master\n```\nThe query:\n```sql\n{gold.answer}\n```"


@breaks("sql")
def syntax_error(gold: Gold) -> str:
    """Leave the query open."""
    return f"{gold.answer} WHERE ("


@breaks("sql")
def text_of_the_query(gold: Gold) -> str:
    """Select the text of the query in place of its result."""
    return "SELECT '" + gold.answer.replace("'", "''") + "'"


@breaks("sql")
def one_column_more(gold: Gold) -> str:
    """Add a column with a value that no data hold."""
    return f"SELECT *, 'a column that nobody asked for' FROM (SELECT 1) LEFT JOIN ({gold.answer})"


@breaks("sql")
def unknown_table(gold: Gold) -> str:
    """Read a table that does not exist."""
    return "SELECT * FROM no_such_table"


@breaks("sql")
def query_in_a_comment(gold: Gold) -> str:
    """Put the query into a comment, and select something else."""
    return f"/* {gold.answer.replace('*/', '')} */ SELECT 'nothing of the kind'"


def _is_quoted(gold: Gold) -> bool:
    return re.search(r"['\"`\[]|--|/\*", gold.answer) is not None


def _is_ordered(gold: Gold) -> bool:
    return re.search(r"\border\s+by\b", gold.answer, re.IGNORECASE) is not None


# ---- programs ----------------------------------------------------------------------------------------------------


@keeps("code")
def comments(gold: Gold) -> str:
    """Put a comment before and after the program."""
    return f"# the program\n{gold.answer}\n# end"


@keeps("code")
def future_import(gold: Gold) -> str:
    """Begin the program with a future import."""
    return f"from __future__ import annotations\n\n{gold.answer}"


@keeps("code")
def blank_lines_around(gold: Gold) -> str:
    """Put blank lines around the program."""
    return f"\n\n{gold.answer}\n\n"


@keeps("code", whole=True)
def fence_of_py(gold: Gold) -> str:
    """Call the block py."""
    return f"```py\n{gold.answer}\n```"


@keeps("code", whole=True)
def python_fence_in_capitals(gold: Gold) -> str:
    """Call the block Python."""
    return f"```Python\n{gold.answer}\n```"


@keeps("code", whole=True)
def code_fence_without_a_name(gold: Gold) -> str:
    """Leave out the name of the block."""
    return f"```\n{gold.answer}\n```"


@keeps("code", whole=True)
def fence_with_a_title(gold: Gold) -> str:
    """Give the block a title."""
    return f'```python title="solution.py"\n{gold.answer}\n```'


@keeps("code", whole=True)
def output_after_the_program(gold: Gold) -> str:
    """Show an output in a text block after the program."""
    return f"```python\n{gold.answer}\n```\n\nOutput:\n```text\n3\n```"


@keeps("code", whole=True)
def shell_before_the_program(gold: Gold) -> str:
    """Show a command of the shell in a block before the program."""
    return f"Run it like this:\n```bash\npython solution.py\n```\nThe program:\n```python\n{gold.answer}\n```"


@breaks("code")
def no_program(gold: Gold) -> str:
    """Write a program that does nothing."""
    return "pass"


@breaks("code")
def error_at_the_end(gold: Gold) -> str:
    """Raise an exception after the program."""
    return f"{gold.answer}\nraise ValueError('not finished')"


@breaks("code")
def exit_at_once(gold: Gold) -> str:
    """End with status 0 before anything is computed."""
    return f"import sys\nsys.exit(0)\n{gold.answer}"


@breaks("code")
def hard_exit(gold: Gold) -> str:
    """End the process with status 0 before anything is computed."""
    return f"import os\nos._exit(0)\n{gold.answer}"


@breaks("code")
def equal_to_everything(gold: Gold) -> str | None:
    """Return an object that says it equals everything."""
    name = gold.sample.row.get("function")
    return name and (
        "class Equal(str):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n\n"
        f"def {name}(*args, **kwargs):\n    return Equal()"
    )


@breaks("code")
def endless_loop(gold: Gold) -> str:
    """Never end."""
    return "while True:\n    pass"


@breaks("code", whole=True)
def program_in_prose(gold: Gold) -> str:
    """Describe the program in a sentence."""
    return "Loop over the input, compute each value, and print it."
