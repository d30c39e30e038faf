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


add_forms(
    keeps(*ITEM_KINDS),
    {"no space after commas": ",", "space after commas": ", "},
    lambda gold, comma: gold.with_items(gold.items).replace(", ", comma),
)


def _with_items(gold: Gold, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> str | None:
    """Change the parts of an answer."""
    items = change(gold.items)
    if items == gold.items:
        return None
    return gold.with_items(items)


add_forms(keeps("set"), {"elements in another order": lambda items: items[::-1]}, _with_items)


add_forms(keeps("interval"), {"infinity as a character": (r"\\infty", "\N{INFINITY}")}, substitute)


def _another_end(gold: Gold, end: int) -> str | None:
    """Write [1, 2) as (1, 2) or as [1, 2]."""
    brackets = list(gold.brackets)
    brackets[end] = {"(": "[", "[": "(", ")": "]", "]": ")"}[brackets[end]]
    if "\\infty" in gold.items[end]:
        return None
    return f"{brackets[0]}{', '.join(gold.items)}{brackets[1]}"


add_forms(breaks("interval"), {"another left end": 0, "another right end": 1}, _another_end)

add_forms(breaks("tuple", "interval"), {"parts in another order": lambda items: items[::-1]}, _with_items)

add_forms(
    breaks(*ITEM_KINDS),
    {"a missing part": lambda items: items if items[-1] in items[:-1] else items[:-1]},
    _with_items,
)

add_forms(breaks("set", "tuple", "list"), {"one part more": lambda items: (*items, "97531")}, _with_items)


@breaks(*ITEM_KINDS)
def only_the_first_part(gold: Gold) -> str:
    """Write (1, 2) as 1."""
    return gold.items[0]


def _change_last(gold: Gold, change: Callable[[Fraction], Fraction]) -> str | None:
    """Change the value of the last part, if that makes it another one."""
    value = value_of_answer(gold.items[-1])
    if value is None or change(value) == value:
        other = None
    else:
        other = decimal(change(value))
    if other is None or other in gold.items:
        return None
    return gold.with_items((*gold.items[:-1], other))


add_forms(
    breaks(*ITEM_KINDS),
    {"another part": lambda value: value + 1, "another sign of a part": lambda value: -value},
    _change_last,
)
