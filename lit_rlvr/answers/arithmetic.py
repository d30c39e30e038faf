"""Sums and products of numbers as they stand, for references such as `8 + 1 + 14 = 23`, whose steps are the answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lit_rlvr.answers.characters import ALPHABET
from lit_rlvr.answers.latex import clean

_SIGNS = (
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])|\u00d7"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|\u00f7"), "/"),
    (re.compile(r"\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r"(\1/\2)"),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"[\[{]"), "("),
    (re.compile(r"[\]}]"), ")"),
)
_COUNTED = re.compile(
    rf"(?<=\d)\s+[{ALPHABET}]{{2,}}(?=\s*(?:[-+*/=\u00d7\u00f7]|\\(?:times|cdot|div)|[.!]?$))|(?:USD|[\u20ac\u00a3])\s*(?=\d)"
)
"""What is counted: a word behind a number, a currency before it."""
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|[-+*/^()])")
LONGEST = 200
"""Longer texts are no sums."""

Tree = Any
"""A number as a text, or an operation with its operands: those of sums and products are sorted."""


def sides(text: str) -> list[Tree]:
    """Return the sides of an equation between numbers, or the one side of a sum or product; [] if the text is neither.

    A side is a number or an operation, in which the order of what is added or multiplied does not count.
    """
    text = _COUNTED.sub("", clean(text))
    for sign, plain in _SIGNS:
        text = sign.sub(plain, text)
    if len(text) > LONGEST or not re.search(r"\d", text):
        return []
    trees = [_tree(side) for side in text.split("=")]
    if None in trees:
        return []
    return trees


def has_steps(trees: list[Tree]) -> bool:
    """Return True if a side is a sum or product, or one of several sides is more than a number with a sign."""
    return any(_is_operation(tree, len(trees) > 1) for tree in trees)


def _is_operation(tree: Tree, in_equation: bool) -> bool:
    """Return True for a sum or product, and in an equation for all but a number with a sign."""
    if isinstance(tree, str) or (tree[0] == "-" and isinstance(tree[1], str)):
        return False
    if in_equation:
        return True
    is_fraction = (
        tree[0] == "*" and len(tree) == 3 and all(isinstance(part, str) or part[0] == "/" for part in tree[1:])
    )
    return tree[0] in ("+", "*") and not (is_fraction and any(part[0] == "/" for part in tree[1:]))


def same_steps(reference: list[Tree], answer: list[Tree]) -> bool:
    """Return True if an answer has every side of the reference that is an operation, and no other value beside them."""
    is_equation = len(reference) > 1
    operations = [tree for tree in reference if _is_operation(tree, is_equation)]
    values = [tree for tree in reference if not _is_operation(tree, is_equation)]
    if not all(tree in answer for tree in operations):
        return False
    return not values or len(answer) == 1 or any(value in answer for value in values)


def _tree(text: str) -> Tree | None:
    tokens = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        tokens.append(match[1])
        position = match.end()
    reader = _Tokens(tokens)
    tree = reader.sum(0)
    if tree is not None and not reader.tokens:
        return tree
    return None


class _Tokens:
    """Tokens that are read from the front, as sums of products of powers."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens[::-1]

    def sum(self, depth: int) -> Tree | None:
        return self._operation("+", "-", self.product, depth)

    def product(self, depth: int) -> Tree | None:
        return self._operation("*", "/", self.power, depth)

    def _operation(self, sign: str, inverse: str, operand: Callable[[int], Tree | None], depth: int) -> Tree | None:
        """Read operands between a sign and its inverse, and join them."""
        parts = [operand(depth)]
        while self._next() in (sign, inverse):
            is_inverse = self.tokens.pop() == inverse
            part = operand(depth)
            parts.append((inverse, part) if is_inverse and part is not None else part)
        return _joined(sign, parts)

    def power(self, depth: int) -> Tree | None:
        base = self.atom(depth)
        if base is None or self._next() != "^":
            return base
        self.tokens.pop()
        exponent = self.atom(depth)
        if exponent is None:
            return None
        return ("^", base, exponent)

    def atom(self, depth: int) -> Tree | None:
        if not self.tokens or depth > 20:
            return None
        token = self.tokens.pop()
        if token == "(":
            inside = self.sum(depth + 1)
            if self.tokens:
                closed = self.tokens.pop()
            else:
                closed = ""
            if closed == ")":
                return inside
            return None
        if token == "-":
            inside = self.atom(depth + 1)
            if inside is None:
                return None
            return ("-", inside)
        if token[0].isdigit():
            return token
        return None

    def _next(self) -> str:
        if self.tokens:
            return self.tokens[-1]
        return ""


def _joined(sign: str, parts: list[Tree | None]) -> Tree | None:
    """Return the operation on some parts in a fixed order, those of inner ones of its kind among them."""
    flat: list[Tree] = []
    for part in parts:
        if part is None:
            return None
        flat += part[1:] if isinstance(part, tuple) and part[0] == sign else [part]
    if len(flat) == 1:
        return flat[0]
    return (sign, *sorted(flat, key=repr))
