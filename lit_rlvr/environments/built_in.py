"""The built-in environments.

Calculator, Python, Crop (a magnifying glass for images) and SQLShell are tools.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from lit_rlvr.common.arguments import check_within
from lit_rlvr.environments.tools import Tools
from lit_rlvr.errors import UserError
from lit_rlvr.media import kinds_of
from lit_rlvr.rewards.sql import databases_of
from lit_rlvr.rewards.sql_query import QueryLimits, run_query
from lit_rlvr.types import Sample
from lit_rlvr.workers.process import Isolation
from lit_rlvr.workers.sandbox import ProgramLimits, is_supported, run

MAX_DIGITS = 1000
_BINARY: dict[type[ast.operator], Callable[..., int | float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
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
        left = _value(node.left)
        right = _value(node.right)
        if isinstance(node.op, ast.Pow):
            if left < 0 and not float(right).is_integer():
                raise ValueError("the result is not a real number")
            if abs(left) > 1 and right * math.log10(abs(left)) > MAX_DIGITS:
                raise ValueError(f"the result has more than {MAX_DIGITS} digits")
        return _BINARY[type(node.op)](left, right)
    raise ValueError("only numbers, parentheses and + - * / // % **")


class Python(Tools):
    """A tool that runs programs in the sandbox of `CodeTests`: they can compute and print, and nothing else.

    Args:
        cpu_seconds: CPU time of one program, in whole seconds.
        memory_mb: address space of one program, in MiB.
        kwargs: `limits` and `offer` of every environment with tools.

    Raises:
        UserError: this machine has no sandbox.
    """

    def __init__(self, cpu_seconds: int = 2, memory_mb: int = 1024, **kwargs: Any) -> None:
        if not is_supported():
            raise UserError("rollout.environment: Python needs Linux on x86_64 or aarch64 for its sandbox")
        check_within("[1, inf)", "Python", cpu_seconds=cpu_seconds, memory_mb=memory_mb)
        # the sandbox ends a sleeping program earlier
        super().__init__(**{"limits": Isolation(wall_seconds=10.0 * cpu_seconds + 20.0), **kwargs})
        self._program = ProgramLimits(cpu_seconds, memory_mb)

    def python(self, code: str) -> str:
        """Run a Python program and see what it prints.

        Args:
            code: The program; it must print its result.
        """
        return run(code, "", self._program) or "the program printed nothing"


class Crop(Tools):
    """A tool that shows a region of the sample's first image, enlarged so that its longer side has `size` pixels.

    Args:
        size: longer side of the enlarged region, in pixels.
        kwargs: `limits` and `offer` of every environment with tools.
    """

    def __init__(self, size: int = 336, **kwargs: Any) -> None:
        if size < 28:
            raise UserError(f"Crop.size: {size} pixels are too few; use at least 28")
        super().__init__(**kwargs)
        self._size = size
        self._image = None

    def reset(self, sample: Sample) -> None:
        if kinds_of(sample.images)[:1] != ["image"]:
            raise UserError(f"{sample.source or sample.id}: Crop needs an image")
        self._image = sample.images[0]

    def crop(self, left: float, top: float, right: float, bottom: float) -> Any:
        """See a region of the image enlarged. All numbers are shares of the image's width or height, from 0 to 1.

        Args:
            left: Left edge of the region.
            top: Top edge of the region.
            right: Right edge of the region.
            bottom: Bottom edge of the region.
        """
        assert self._image is not None, "reset() comes first"
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError("give 0 <= left < right <= 1 and 0 <= top < bottom <= 1")
        wide, high = self._image.size
        box = (int(left * wide), int(top * high), max(round(right * wide), 1), max(round(bottom * high), 1))
        region = self._image.convert("RGB").crop(box)
        scale = self._size / max(region.size)
        return region.resize([max(1, round(side * scale)) for side in region.size])


class SQLShell(Tools):
    """A tool that runs read-only queries on the first SQLite file of `sample.row["databases"]`.

    It shows the rows or the error.

    The last turn, which calls no tool, holds the answer, which `SQLExecution` judges.

    Args:
        shown_rows: most rows of a result to show.
        max_instructions: limit on one query, in instructions of SQLite's virtual machine.
        kwargs: `limits` and `offer` of every environment with tools.
    """

    def __init__(self, shown_rows: int = 10, max_instructions: int = 20_000_000, **kwargs: Any) -> None:
        check_within("[1, inf)", "SQLShell", shown_rows=shown_rows, max_instructions=max_instructions)
        super().__init__(**kwargs)
        self.shown_rows = shown_rows
        self._limits = QueryLimits(max_instructions, 100_000)
        self._path = ""

    def reset(self, sample: Sample) -> None:
        self._path = databases_of(sample, "SQLShell")[0]

    def query(self, sql: str) -> str:
        """Run a SQL query on the database and see its rows.

        Args:
            sql: One SELECT statement of SQLite.
        """
        rows = run_query(self._path, sql, self._limits).rows
        lines = []
        for row in rows[: self.shown_rows]:
            lines.append(" | ".join(map(_sql_value, row)))
        left = len(rows) - len(lines)
        return "\n".join([*lines, *([f"... and {left} more rows"] if left else [])]) or "no rows"


def _sql_value(value: Any) -> str:
    """Return a value as SQLite shows it: numbers with a fraction have 15 digits."""
    if isinstance(value, float):
        value = float(f"{value:.15g}")
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return repr(value)
    return str(value)
