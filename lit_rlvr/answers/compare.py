"""The comparison of two readings: of one type, or of two types that mean the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, combinations
from typing import Any

import sympy

from lit_rlvr.answers.units import Dimension
from lit_rlvr.answers.values import (
    Chain,
    Equation,
    Expression,
    Labelled,
    Matrix,
    Number,
    Parts,
    Percentage,
    Quantity,
    Reading,
    Region,
    Series,
    Text,
    all_readings,
    first_of,
)

POINTS = (sympy.Rational(7, 5), sympy.Rational(-13, 11), sympy.Rational(29, 17), sympy.Rational(-3, 7))
"""Where two expressions are compared: two polynomials of degree d agree at a random point with a chance of d / range;
these points have no common structure, so that expressions that agree at all of them are taken as equal."""
INTEGERS = tuple(map(sympy.Integer, (7, 12, -4, 2, 1, 50, 3, 99, 5, 144, 101, -9, 6, 1000, 25)))
"""Where functions with steps and corners are compared, which agree over stretches."""
_STEPS = (sympy.floor, sympy.ceiling, sympy.Max, sympy.Min, sympy.Abs, sympy.Mod)
EXACT_DIGITS = 30
"""Digits to which exact constants are compared."""


@dataclass(frozen=True)
class Rules:
    """The precision that an answer needs.

    Args:
        decimals: a number written as a decimal must agree to this many places, and to as many digits if it is below 1.
        reference_places: an answer that rounds to the reference's decimals is right.
    """

    decimals: int = 6
    reference_places: bool = False


def same(references: Sequence[Reading], answers: Sequence[Reading], rules: Rules) -> bool:
    """Return True if one reading of the answer equals one of the reference.

    A label that only one side has does not count (`x = 5` and `5`); where both have labels they must be the same.
    """
    if any(_equal(r, a, rules) for r in references for a in answers):
        return True
    if first_of(Labelled, references) is not None and first_of(Labelled, answers) is not None:
        return False
    return any(
        _equal(r, a, rules)
        for r in all_readings(references)
        for a in all_readings(answers)
        if not isinstance(a, Equation)
    )


def _equal(reference: Reading, answer: Reading, rules: Rules) -> bool:
    pair = (type(reference), type(answer))
    if pair in _COMPARISONS:
        return bool(_COMPARISONS[pair](reference, answer, rules))
    if pair[::-1] in _SYMMETRIC:
        return bool(_SYMMETRIC[pair[::-1]](answer, reference, rules))
    return pair in _SYMMETRIC and bool(_SYMMETRIC[pair](reference, answer, rules))


# ---- numbers ----------------------------------------------------------------------------------------------


def _numbers(reference: Number, answer: Number, rules: Rules) -> bool:
    r = reference.value
    a = answer.value
    if r == a:
        return True
    if not (r.is_finite and a.is_finite):
        return False
    if reference.places is None and answer.places is None:
        r = r.doit()
        a = a.doit()
        if r.is_Rational and a.is_Rational:
            return bool(r == a)
        return _agree(r, a)
    r = _real(r)
    a = _real(a)
    if r is None or a is None:
        return False
    if 2 * abs(r - a) <= min(Fraction(1), abs(r)) / 10**rules.decimals:
        return True
    if any(_is_shortened(*pair, rules.decimals) for pair in ((r, a, answer.places), (a, r, reference.places))):
        return True
    if rules.reference_places:
        places = reference.places
    else:
        places = None
    return places is not None and abs(r - a) * 10**places <= Fraction(1, 2)


def _is_shortened(full: Fraction, short: Fraction, places: int | None, decimals: int) -> bool:
    """Return True if a decimal of at least four digits and enough places is the other number, rounded or cut off."""
    if places is None or places < decimals or abs(short) * 10**places < 1000:
        return False
    left = abs(full - short) * 10**places  # in units of the last digit
    return left <= Fraction(1, 2) or (left < 1 and abs(short) < abs(full))


def _real(value: Any) -> Fraction | None:
    """Return a real constant as a fraction, exact to 40 digits; None if it is not real."""
    if value.is_Rational:
        return Fraction(int(value.p), int(value.q))
    number = value.evalf(EXACT_DIGITS + 10)
    if not number.is_Float:
        return None
    exact = sympy.Rational(number)
    return Fraction(int(exact.p), int(exact.q))


def _agree(r: Any, a: Any) -> bool:
    """Return True if two exact constants have the same digits."""
    x = r.evalf(EXACT_DIGITS + 10)
    y = a.evalf(EXACT_DIGITS + 10)
    if not (x.is_number and y.is_number) or x.has(sympy.nan, sympy.zoo) or y.has(sympy.nan, sympy.zoo):
        return False
    size = max(abs(sympy.N(x)), abs(sympy.N(y)))
    if not abs(x - y) <= size * sympy.Float(10) ** -EXACT_DIGITS:
        return False
    left = (r - a).evalf(2, maxn=20 * EXACT_DIGITS)  # as many digits as a difference needs
    return bool(abs(left) <= size * sympy.Float(10) ** (-10 * EXACT_DIGITS))


_DEGREES = {"celsius": Fraction(1), "fahrenheit": Fraction(5, 9)}
"""Scale of temperature -> size of a degree in kelvin."""
_ZEROS: dict[Dimension, Fraction] = {(("celsius", 1),): Fraction("273.15"), (("fahrenheit", 1),): Fraction("459.67")}
"""Dimension of a temperature -> its degrees from absolute zero to 0."""


def _quantities(reference: Quantity, answer: Quantity, rules: Rules) -> bool:
    units = {(quantity.dimension, quantity.factor, quantity.is_sum) for quantity in (reference, answer)}
    if len(units) == 1:
        return _numbers(reference.number, answer.number, rules)
    (kind, r), (answer_kind, a) = map(_in_base_units, (reference, answer))
    return kind == answer_kind and _numbers(r, a, rules)


def _in_base_units(quantity: Quantity) -> tuple[dict[str, int], Number]:
    """Return the powers of base units, with kelvin for all scales of temperature, and the number in these units.

    Only the number of a temperature itself begins elsewhere: a rise of 1 celsius is one of 1 kelvin.
    """
    factor = quantity.factor
    powers = Counter[str]()
    for base, power in quantity.dimension:
        factor *= _DEGREES.get(base, Fraction(1)) ** power
        powers["kelvin" if base in _DEGREES else base] += power
    offset = _ZEROS.get(quantity.dimension, Fraction(0))
    value = (quantity.number.value + sympy.Rational(offset)) * sympy.Rational(factor)
    return powers, Number(value, quantity.number.places)


def _percentages(reference: Percentage, answer: Percentage, rules: Rules) -> bool:
    return _numbers(_fraction(reference), _fraction(answer), rules)


def _fraction(percentage: Percentage) -> Number:
    places = percentage.number.places
    return Number(
        percentage.number.value / sympy.Integer(10) ** percentage.digits,
        None if places is None else places + percentage.digits,
    )


def _percentage_number(percentage: Percentage, number: Number, rules: Rules) -> bool:
    """Compare a percentage with its fraction, or with the number before the sign."""
    return _numbers(_fraction(percentage), number, rules) or (
        percentage.digits == 2 and _numbers(percentage.number, number, rules)
    )


def _without_unit(quantity: Quantity, number: Number, rules: Rules) -> bool:
    """Compare with a number that lacks the unit, which no sum of units can, and no number of something else."""
    return not quantity.is_sum and not number.noun and _numbers(quantity.number, number, rules)


# ---- formulas ---------------------------------------------------------------------------------------------


def _expressions(reference: Expression, answer: Expression, rules: Rules) -> bool:
    if reference.is_spelt and answer.is_spelt:
        return False  # "no" is not "on"
    r, a = _with_same_case(reference.value, answer.value)
    if _names(r) != _names(a) and _has_integer_letter(r) and _has_integer_letter(a):
        a = a.xreplace(dict(zip(a.free_symbols, r.free_symbols, strict=True)))  # any integer, whatever its letter
    if r == a:
        return True
    if r.free_symbols != a.free_symbols:
        r = sympy.expand(r)
        a = sympy.expand(a)
        if r.free_symbols != a.free_symbols:
            return False
    return _zero_everywhere(r, a)


def _names(value: Any) -> set[str]:
    return {str(symbol) for symbol in value.free_symbols}


def _has_integer_letter(value: Any) -> bool:
    """Return True if the only letter is one that stands for any integer, as in 2 k pi."""
    names = _names(value)
    return len(names) == 1 and names <= {"k", "m", "n"} and value.has(sympy.pi)


def _with_same_case(r: Any, a: Any) -> tuple[Any, Any]:
    """Return both with lower-case symbols if only the case of letters differs."""
    names = _names(r)
    lower = {name.lower() for name in names}
    lower_of_answer = {name.lower() for name in _names(a)}
    if names == _names(a) or lower != lower_of_answer or not len(names) == len(lower) == len(_names(a)):
        return r, a
    return _in_lower_case(r), _in_lower_case(a)


def _in_lower_case(value: Any) -> Any:
    return value.xreplace({symbol: sympy.Symbol(str(symbol).lower()) for symbol in value.free_symbols})


def _values(value: Any, symbols: Sequence[Any], points: Sequence[Any]) -> list[Any]:
    """Return the expression's values at fixed points; None where it has none."""
    numbers = []
    for shift, _ in enumerate(points):
        chosen = {s: points[(shift + i) % len(points)] + i // len(points) for i, s in enumerate(symbols)}
        number = value.xreplace(chosen).evalf(EXACT_DIGITS)
        is_known = number.is_number and not number.has(sympy.nan, sympy.zoo, sympy.oo) and not number.free_symbols
        numbers.append(number if is_known and (number.is_Float or number.is_Integer or number.as_real_imag()) else None)
    return numbers


def _values_of_both(r: Any, a: Any) -> list[tuple[Any, Any]]:
    """Return the values of two expressions at the points where both have one."""
    symbols = sorted(r.free_symbols | a.free_symbols, key=str)
    if any(value.has(*_STEPS) for value in (r, a)):
        points = INTEGERS
    else:
        points = POINTS
    if len(symbols) > 1 and any(not power.exp.is_integer for value in (r, a) for power in value.atoms(sympy.Pow)):
        points = tuple(map(abs, points))  # quantities under roots
    values = (_values(value, symbols, points) for value in (r, a))
    return [(x, y) for x, y in zip(*values, strict=True) if None not in (x, y)]


def _zero_everywhere(r: Any, a: Any) -> bool:
    pairs = _values_of_both(r, a)
    return len(pairs) > 1 and all(_close(x, y) for x, y in pairs)


def _close(x: Any, y: Any) -> bool:
    return bool(abs(x - y) <= max(abs(x), abs(y), sympy.Float(1e-20)) * sympy.Float(10) ** -(EXACT_DIGITS - 10))


def _constant_expression(expression: Expression, number: Number, rules: Rules) -> bool:
    """Compare a formula whose variables cancel out, such as sin^2 x + cos^2 x."""
    return number.value.is_finite and _zero_everywhere(expression.value, number.value)


def _equations(reference: Equation, answer: Equation, rules: Rules) -> bool:
    """Compare up to a constant factor, of an inequality up to a positive one: 2x + 2y = 6 is x + y = 3."""
    if reference.sign != answer.sign:
        return False
    r, a = _with_same_case(reference.difference, answer.difference)
    if reference.sign == "=":
        r, a = (sympy.together(value).as_numer_denom()[0] for value in (r, a))  # xy = 6 is y = 6/x
    if r.free_symbols != a.free_symbols or not r.free_symbols:
        return False
    pairs = _values_of_both(r, a)
    ratios = [x / y for x, y in pairs if abs(x) > 1e-15 and abs(y) > 1e-15]
    return (
        len(ratios) > 1
        and len(ratios) == len(pairs)
        and all(_close(ratios[0], ratio) for ratio in ratios)
        and (reference.sign in ("=", "\\ne") or bool(ratios[0] > 0))
    )


def _sum_of_unknowns(reference: Number, answer: Equation, rules: Rules) -> bool:
    """Compare a number with an answer such as m + n = 33, which names what was asked for; 2x + 3y = 5 is a line."""
    if answer.total is None or len(answer.difference.free_symbols) < 2:
        return False
    return _is_asked_for(answer) and _numbers(reference, Number(answer.total), rules)


def _is_asked_for(equation: Equation) -> bool:
    """Return True for an equation whose other side is a plain sum or product of unknowns, or has no coordinates."""
    names = {str(symbol) for symbol in equation.difference.free_symbols}
    if not names & {"x", "y", "z"}:
        return True
    symbols = equation.difference.free_symbols
    sums = [sympy.Add(*symbols), sympy.Mul(*symbols)]
    forms = [equation.difference + equation.total, equation.total - equation.difference]
    return any(sympy.expand(form - plain) == 0 for form in forms for plain in sums)


def _matrices(reference: Matrix, answer: Matrix, rules: Rules) -> bool:
    r = reference.value
    a = answer.value
    return r.shape == a.shape and all(_equal(_cell(x), _cell(y), rules) for x, y in zip(r, a, strict=True))


def _cell(value: Any) -> Reading:
    if value.free_symbols:
        return Expression(value)
    return Number(value)


def _vectors(reference: Matrix, answer: Series, rules: Rules) -> bool:
    """Compare a column or row with a tuple."""
    rows = [first_of(Series, item) for item in answer.items]
    if all(row is not None for row in rows):  # [[1, 2], [3, 4]]
        flat = [cell for row in rows if row is not None for cell in row.items]
        shape = (len(rows), len(flat) // max(len(rows), 1))
        return reference.value.shape == shape and all(
            same([_cell(x)], y, rules) for x, y in zip(reference.value, flat, strict=True)
        )
    is_vector = 1 in reference.value.shape and answer.brackets != "{}" and len(reference.value) == len(answer.items)
    return is_vector and all(same([_cell(x)], y, rules) for x, y in zip(reference.value, answer.items, strict=True))


# ---- lists, sets, labels ----------------------------------------------------------------------------------


def _series(reference: Series, answer: Series, rules: Rules) -> bool:
    r = reference
    a = answer
    plain = ("", "{}")
    if r.brackets in plain and a.brackets in plain and not _has_dots(r):
        return _same_items(r.items, a.items, "{}" in (r.brackets, a.brackets), rules)
    kinds = {r.brackets, a.brackets}
    is_open = kinds in ({"()"}, {"[]"}, {"(]"}, {"[)"}, {""}, {"", "()"}, {"", "[]"}) or (
        kinds == {"()", "[]"} and len(r.items) > 2
    )
    return is_open and len(r.items) == len(a.items) and all(map(lambda x, y: same(x, y, rules), r.items, a.items))


def _has_dots(series: Series) -> bool:
    return any(isinstance(v, Text) and v.key.endswith("dots") for item in series.items for v in item)


def _same_items(
    references: Sequence[Sequence[Reading]], answers: Sequence[Sequence[Reading]], is_set: bool, rules: Rules
) -> bool:
    """Return True if both have the same items in any order, in a set however often."""
    left = list(answers)
    for item in references:
        match = next((k for k, other in enumerate(left) if same(item, other, rules)), None)
        if match is None:
            if not (is_set and any(same(item, other, rules) for other in answers)):
                return False
        else:
            left.pop(match)
    if left and not is_set:
        return False
    for other in left:
        if not any(same(item, other, rules) for item in references):
            return False
    return True


def _labelled(reference: Labelled, answer: Labelled, rules: Rules) -> bool:
    r = reference.values
    a = answer.values
    if len(r) != len(a):  # x_1 = 1, x_2 = 2 and x = 1 or x = 2
        stems = set(map(_stem, r))
        if stems != set(map(_stem, a)) or len(stems) > 1:
            return False
        return _same_items([*chain(*r.values())], [*chain(*a.values())], False, rules)
    if len(r) == 1 and set(r) != set(a):
        (x, left), (y, right) = (*r.items(), *a.items())
        named = re.fullmatch(r"y:[a-z]\(\w\)", f"{min(x, y, key=len)}:{max(x, y, key=len)}")  # y = 2x and f(x) = 2x
        return named is not None and _same_items(left, right, False, rules)
    return set(r) == set(a) and all(_same_items(r[label], a[label], False, rules) for label in r)


def _stem(label: str) -> str:
    return label.partition("_")[0]


def _values_in_order(labelled: Labelled, series: Series, rules: Rules) -> bool:
    """Compare values with labels to values without: in the labels' order, or as a set if the labels are numbered."""
    groups = list(labelled.values.values())
    if series.brackets == "{}" and len({_stem(label) for label in labelled.values}) > 1:
        return False
    items = [item for group in groups for item in group]
    if len(items) != len(series.items):
        return False
    if len(groups) == 1 or (series.brackets != "()" and len({_stem(label) for label in labelled.values}) == 1):
        return _same_items(items, series.items, False, rules)
    by_label = [item for _, group in sorted(labelled.values.items()) for item in group]
    for order in (items, by_label):
        if all(same(x, y, rules) for x, y in zip(order, series.items, strict=True)):
            return True
    return False


# ---- regions, orders, parts -------------------------------------------------------------------------------


def _regions(reference: Region, answer: Region, rules: Rules) -> bool:
    """Compare interval by interval; ends have no decimals to round to."""
    rules = replace(rules, reference_places=False)
    if len(reference.intervals) != len(answer.intervals):
        return False
    for r, a in zip(reference.intervals, answer.intervals, strict=True):
        same_start = _numbers(Number(r[0], 0), Number(a[0], 0), rules)
        same_end = _numbers(Number(r[1], 0), Number(a[1], 0), rules)
        if r[2:] != a[2:] or not same_start or not same_end:
            return False
    return True


def _same_parts(reference: Parts, answer: Parts, rules: Rules) -> bool:
    if reference.kind != answer.kind:
        return False
    r = reference.parts
    a = answer.parts
    if reference.kind == "time":
        return bool(r[:3] == a[:3] and (r[3] == a[3] or "" in (r[3], a[3]))) or (_hours(r) == _hours(a) is not None)
    if reference.kind == "date":
        return bool(r[1:] == a[1:] and (r[0] == a[0] or 0 in (r[0], a[0])))
    if reference.kind == "ratio":
        return len(r) == len(a) and all(_agree(x[0] * y[1], x[1] * y[0]) for x, y in _pairs(r, a))
    if reference.kind == "residue":
        return bool(r[1] == a[1] and (r[0] - a[0]) % r[1] == 0)
    if r != a and reference.kind == "numeral" and _is_numeral(*r) and _is_numeral(*a):
        return _in_base(*r) == _in_base(*a)
    return r == a


def _hours(time: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return a time in 24 hours; None without am or pm from 1 to 12."""
    hour, minute, second, half = time
    if half:
        return ((hour % 12) + 12 * (half == "p"), minute, second)
    if hour > 12 or hour == 0:
        return (hour, minute, second)
    return None


def _pairs(r: Sequence[Any], a: Sequence[Any]) -> list[Any]:
    pairs = list(zip(r, a, strict=True))
    return [((x[0], y[0]), (x[1], y[1])) for x, y in combinations(pairs, 2)]


def _part_value(part: Parts, number: Number, rules: Rules) -> bool:
    """Compare a ratio a:b with a/b, and a numeral with its digits or its value."""
    if part.kind == "ratio" and len(part.parts) == 2 and part.parts[1] != 0:
        return _numbers(Number(part.parts[0] / part.parts[1]), number, rules)
    if part.kind == "time" and part.parts[2:] == (0, "") and part.parts[1]:  # a ratio such as 1:10
        return _numbers(Number(sympy.Rational(part.parts[0], part.parts[1])), number, rules)
    if part.kind == "residue":
        return _numbers(Number(sympy.Integer(part.parts[0])), number, rules)
    if part.kind == "numeral":
        digits, base = part.parts
        bases = [b for b in (base, 10) if _is_numeral(digits, b)]
        return any(_numbers(Number(_in_base(digits, b)), number, rules) for b in bases)
    return False


def _is_numeral(digits: str, base: int) -> bool:
    return 2 <= base <= 36 and all(int(digit, 36) < base for digit in digits if digit != ".")


def _in_base(digits: str, base: int) -> Any:
    whole, _, rest = digits.partition(".")
    return sympy.Rational(int(whole + rest, base), base ** len(rest))


def _identical(reference: Text | Chain, answer: Text | Chain, rules: Rules) -> bool:
    return reference == answer


_COMPARISONS: dict[tuple[type, type], Any] = {
    (Text, Text): _identical, (Number, Number): _numbers, (Quantity, Quantity): _quantities,
    (Percentage, Percentage): _percentages,
    (Expression, Expression): _expressions, (Equation, Equation): _equations, (Matrix, Matrix): _matrices,
    (Series, Series): _series, (Labelled, Labelled): _labelled, (Region, Region): _regions, (Chain, Chain): _identical,
    (Parts, Parts): _same_parts, (Number, Equation): _sum_of_unknowns,
}  # fmt: skip
_SYMMETRIC: dict[tuple[type, type], Any] = {
    (Quantity, Number): _without_unit,
    (Percentage, Number): _percentage_number,
    (Labelled, Series): _values_in_order,
    (Matrix, Series): _vectors,
    (Parts, Number): _part_value,
    (Expression, Number): _constant_expression,
}
