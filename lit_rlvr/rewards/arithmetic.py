"""A parser of arithmetic to sympy objects without `eval`, which sympy's own parser calls."""

from __future__ import annotations

import ast
import operator
from typing import Any

import math_verify.parser
import sympy
from sympy.parsing import sympy_parser

EVALUATED = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip
UNEVALUATED = {
    ast.Add: lambda a, b: sympy.Add(a, b, evaluate=False),
    ast.Sub: lambda a, b: sympy.Add(a, sympy.Mul(-1, b, evaluate=False), evaluate=False),
    ast.Mult: lambda a, b: sympy.Mul(a, b, evaluate=False),
    ast.Div: lambda a, b: sympy.Mul(a, sympy.Pow(b, -1, evaluate=False), evaluate=False),
    ast.Pow: lambda a, b: sympy.Pow(a, b, evaluate=False),
}


def parse(text: str, *_: Any, evaluate: bool = True, **__: Any) -> sympy.Basic:
    """Parse numbers, names, + - * / ** and brackets; ignore the other arguments of sympy's parser.

    Args:
        evaluate: compute the value; False = 2 + 3 stays a sum.

    Raises:
        SyntaxError: the text is anything else.
    """
    try:
        return _build(ast.parse(text.strip(), mode="eval").body, text.strip(), evaluate)
    except (ValueError, RecursionError, MemoryError) as error:  # raised by the parser for null bytes and deep brackets
        raise SyntaxError(f"no arithmetic: {error}") from error


def _build(node: ast.expr, text: str, evaluate: bool) -> sympy.Basic:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return sympy.Integer(node.value)
    if isinstance(node, ast.Constant) and type(node.value) is float:
        return sympy.Float(ast.get_source_segment(text, node))  # with all its digits
    if isinstance(node, ast.Name):
        return sympy.Symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _build(node.operand, text, evaluate)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in EVALUATED:
        left, right = (_build(side, text, evaluate) for side in (node.left, node.right))
        return (EVALUATED if evaluate else UNEVALUATED)[type(node.op)](left, right)
    raise SyntaxError(f"no arithmetic: {type(node).__name__}")


def replace_sympy_parser() -> None:
    """Replace sympy's parser by `parse` wherever untrusted text reaches it."""
    sympy_parser.parse_expr = parse
    math_verify.parser.parse_expr = parse
