"""Rewrites of expressions, sets, intervals, tuples and lists."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from lit_rlvr.commands.check.gold import Gold, value_of_answer
from lit_rlvr.commands.check.rewrites.registry import ITEM_KINDS, add_forms, breaks, decimal, keeps, substitute

add_forms(keeps("expression"), {"dfrac in an expression": (r"\\frac", r"\\dfrac")}, substitute)


add_forms(keeps("expression"), {"parentheses around": "({answer})"})


add_forms(
    breaks("expression"),
    {
        "twice the expression": "2 \\cdot ({answer})",
        "expression with another sign": "-({answer})",
    },
)


@keeps(*ITEM_KINDS)
def no_space_after_commas(gold: Gold) -> str:
    """Write (1, 2) as (1,2)."""
    return gold.with_items(gold.items).replace(", ", ",")


@keeps(*ITEM_KINDS)
def space_after_commas(gold: Gold) -> str:
    """Write (1,2) as (1, 2)."""
    return gold.with_items(gold.items)


@keeps("set")
def elements_in_another_order(gold: Gold) -> str:
    """Write {1, 2} as {2, 1}."""
    return gold.with_items(gold.items[::-1])


add_forms(keeps("interval"), {"infinity as a character": (r"\\infty", "\N{INFINITY}")}, substitute)


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


@breaks(*ITEM_KINDS)
def a_missing_part(gold: Gold) -> str | None:
    """Write (1, 2, 3) as (1, 2)."""
    return None if gold.items[-1] in gold.items[:-1] else gold.with_items(gold.items[:-1])


@breaks("set", "tuple", "list")
def one_part_more(gold: Gold) -> str:
    """Write (1, 2) as (1, 2, 97531)."""
    return gold.with_items((*gold.items, "97531"))


@breaks(*ITEM_KINDS)
def only_the_first_part(gold: Gold) -> str:
    """Write (1, 2) as 1."""
    return gold.items[0]


def _change_last(gold: Gold, change: Callable[[Fraction], Fraction]) -> str | None:
    """Change the value of the last part, if that makes it another one."""
    value = value_of_answer(gold.items[-1])
    other = None if value is None or change(value) == value else decimal(change(value))
    return None if other is None or other in gold.items else gold.with_items((*gold.items[:-1], other))


add_forms(
    breaks(*ITEM_KINDS),
    {"another part": lambda value: value + 1, "another sign of a part": lambda value: -value},
    _change_last,
)
