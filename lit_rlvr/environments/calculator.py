"""A calculator as a tool."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

from lit_rlvr.environments.tools import Tools

MAX_DIGITS = 1000
_BINARY: dict[type[ast.operator], Callable[..., int | float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[..., int | float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class Calculator(Tools):
    """A tool that evaluates arithmetic: `calculate("17 * 23")` gives 391."""

    def calculate(self, expression: str) -> str:
        """Evaluate an arithmetic expression.

        Args:
            expression: Numbers, parentheses and + - * / // % **, such as (3 + 4) * 5
        """
        expression = str(expression).strip()  # a model may give a number
        if len(expression) > MAX_DIGITS:
            raise ValueError(f"at most {MAX_DIGITS} characters")
        value = _value(ast.parse(expression, mode="eval").body)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("the result is not a finite number")
        return str(value)


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            if left < 0 and not float(right).is_integer():
                raise ValueError("the result is not a real number")
            if abs(left) > 1 and right * math.log10(abs(left)) > MAX_DIGITS:
                raise ValueError(f"the result has more than {MAX_DIGITS} digits")
        return _BINARY[type(node.op)](left, right)
    raise ValueError("only numbers, parentheses and + - * / // % **")
