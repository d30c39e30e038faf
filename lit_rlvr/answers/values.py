"""The types of answers: what a text can mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeVar

from lit_rlvr.answers.units import Dimension


@dataclass(frozen=True)
class Text:
    """Words, a name, an order or a code, in normalised form."""

    key: str


@dataclass(frozen=True)
class Number:
    """A constant.

    Args:
        value: the constant.
        places: decimal places if it is written as a decimal, else None (exact).
        noun: the word behind it that says what is counted ("apples"); "" = none.
    """

    value: Any
    places: int | None = None
    noun: str = field(default="", compare=False)


@dataclass(frozen=True)
class Quantity:
    """A number with a known unit, or the sum of several ("5 ft 3 in", `is_sum`, in base units).

    Args:
        number: the number in front of the unit.
        factor: the unit in base units.
        dimension: what the unit measures.
        is_sum: whether it is the sum of several, in base units.
    """

    number: Number
    factor: Fraction
    dimension: Dimension
    is_sum: bool = False


@dataclass(frozen=True)
class Percentage:
    """A number of parts in 10 ** `digits`: 5 % (2), 5 per mille (3)."""

    number: Number
    digits: int


@dataclass(frozen=True)
class Expression:
    """A formula with variables. `is_spelt`: letters side by side, which may be a word."""

    value: Any
    is_spelt: bool = False


@dataclass(frozen=True)
class Equation:
    """lhs = rhs as lhs - rhs, or an inequality in several variables with its sign turned to "<" or "\\\\le".

    Args:
        difference: lhs - rhs, as an expression of sympy.
        sign: "=", or the sign of the inequality.
        total: the side of an equation that is a constant, if one is.
    """

    difference: Any
    sign: str = "="
    total: Any = None


@dataclass(frozen=True)
class Series:
    """Items in brackets ("()", "[)", "{}", ...) or, with brackets "", separated by commas or "and"."""

    items: tuple[tuple[Reading, ...], ...]
    brackets: str = ""


@dataclass(frozen=True)
class Labelled:
    """Values with labels: `x=1, y=2`, `P(A)=0.3`, `Alice: 3`; a label may have several values (`x=1 or x=2`)."""

    values: dict[str, tuple[tuple[Reading, ...], ...]] = field(hash=False)


@dataclass(frozen=True)
class Region:
    """A set of real numbers as sorted intervals (start, end, is left open, is right open)."""

    intervals: tuple[tuple[Any, Any, bool, bool], ...]


@dataclass(frozen=True)
class Chain:
    """Names in an order, `A>B>C`: (relation, larger, smaller) of each neighbouring pair."""

    pairs: frozenset[tuple[str, str, str]]


@dataclass(frozen=True)
class Matrix:
    """A matrix or vector."""

    value: Any


@dataclass(frozen=True)
class Parts:
    """Numbers that only together have a meaning. `kind`: time, date, ratio, remainder, numeral (with its base)."""

    kind: str
    parts: tuple[Any, ...]


Reading = (
    Text | Number | Quantity | Percentage | Expression | Equation | Series | Labelled | Region | Chain | Matrix | Parts
)


_Kind = TypeVar("_Kind")


def first_of(kinds: type[_Kind] | tuple[type[_Kind], ...], values: Iterable[Reading]) -> _Kind | None:
    """Return the first reading of some kinds; None if there is none."""
    for value in values:
        if isinstance(value, kinds):
            return value
    return None


def all_readings(values: Sequence[Reading]) -> Iterator[Reading]:
    """Yield values and what stands in their labels."""
    for value in values:
        yield value
        if isinstance(value, Labelled) and len(value.values) == 1:
            for items in value.values.values():
                if len(items) == 1:
                    yield from all_readings(items[0])
                else:
                    yield Series(items)


def describe(value: Reading) -> str:
    """Describe a reading in the words of its type: "number 1/2", "interval [0, oo)"."""
    match value:
        case Text(key):
            return f"text {key!r}"
        case Number(number, places):
            return f"number {number}" + ("" if places is None else f" ({places} decimals)")
        case Quantity(number, factor, dimension):
            unit = " ".join(base if power == 1 else f"{base}^{power}" for base, power in dimension)
            return f"quantity {number.value} x {factor} {unit}"
        case Percentage(number, digits):
            return f"number {number.value}/{10**digits}"
        case Expression(formula) | Matrix(formula):
            return f"{type(value).__name__.lower()} {formula}"
        case Equation(difference, sign):
            return f"equation {difference} {sign} 0"
        case Series(items, brackets):
            inside = ", ".join(describe(item[-1]) for item in items)
            kind = {"": "list ", "{}": "set "}.get(brackets, "tuple ")
            return kind + brackets[:1] + inside + brackets[1:]
        case Labelled(values):
            named = []
            for name, group in values.items():
                named.append(f"{name} = {' or '.join(describe(item[-1]) for item in group)}")
            return ", ".join(named)
        case Region(intervals):
            parts = [f"{'[('[a]}{start}, {end}{'])'[b]}" for start, end, a, b in intervals]
            return f"real numbers {' or '.join(parts)}"
        case Chain(pairs):
            return "order " + ", ".join(f"{larger} {sign} {smaller}" for sign, larger, smaller in sorted(pairs))
        case Parts(kind, parts):
            return f"{kind} {':'.join(map(str, parts))}"


def text_keys(values: Sequence[Reading]) -> set[str]:
    """Return the normalised texts among some readings."""
    return {value.key for value in values if isinstance(value, Text)}
