"""The tests of programs in the forms of APPS, TACO, CodeContests, MBPP and HumanEval, as `CodeTests` runs them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_rlvr.common.columns import as_python, parse_text
from lit_rlvr.datamodules.reading.cells import BadRow

KNOWN_TESTS = (
    'a list of {"input", "output"}, {"inputs": [...], "outputs": [...]} with or without "fn_name", assert statements '
    "such as `assert f(2) == 4`, or LiveCodeBench's packed tests"
)
_ASSERTS = re.compile(r"^\s*assert\b", re.MULTILINE)
_RETURNS_LIST = re.compile(r"->\s*(?:Optional\[)?\s*(?:typing\.)?(?:list|tuple)\b", re.IGNORECASE)


def as_tests(cell: Any, starter_code: str = "") -> tuple[str, str]:
    """Return a cell of tests in the form that `CodeTests` reads, and the function that they name, or "".

    Args:
        cell: tests in one of the `KNOWN_TESTS`; text of `CodeTests`'s own form stays as it is.
        starter_code: the annotation of its return value tells whether a value is a list.

    Raises:
        BadRow: the cell is in no known form.
    """
    value = parse_text(as_python(cell))
    if isinstance(value, Mapping):
        inputs = as_python(value.get("inputs", value.get("input")))
        outputs = as_python(value.get("outputs", value.get("output")))
        if not isinstance(inputs, list | tuple) or not isinstance(outputs, list | tuple):
            raise BadRow(f"a dict without lists of inputs and outputs; the known forms are {KNOWN_TESTS}", "tests")
        if len(inputs) != len(outputs):
            raise BadRow(f"{len(inputs)} inputs and {len(outputs)} outputs", "tests")
        return _cases(inputs, outputs, str(value.get("fn_name") or ""), starter_code)
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if isinstance(value, str) and _ASSERTS.search(value):
        return _calls(value)
    if isinstance(value, list | tuple) and all(
        isinstance(t, Mapping) and {"input", "output"} <= t.keys() for t in value
    ):
        names = {str(test.get("fn_name") or "") for test in value}
        if len(names) > 1:
            raise BadRow(f"tests of several functions ({', '.join(sorted(names))})", "tests")
        is_own = all(isinstance(test[key], str) for test in value for key in ("input", "output"))
        if not is_own or names - {""}:
            inputs = [as_python(test["input"]) for test in value]
            outputs = [as_python(test["output"]) for test in value]
            return _cases(inputs, outputs, "".join(names), starter_code)
    elif not isinstance(value, str) or value.lstrip().startswith("{"):
        raise BadRow(f"in no known form; the known forms are {KNOWN_TESTS}", "tests")
    return cell if isinstance(cell, str) else json.dumps(value), ""


def _cases(inputs: Sequence[Any], outputs: Sequence[Any], function: str, starter_code: str) -> tuple[str, str]:
    """Return tests of a program, or of a function if it has a name."""
    inputs = [as_python(value) for value in inputs]
    outputs = [as_python(value) for value in outputs]
    is_wrapped = bool(function) and _are_wrapped(outputs, starter_code)
    tests = []
    for given, wanted in zip(inputs, outputs, strict=True):
        if function:
            given, wanted = _call(given, wanted[0] if is_wrapped else wanted)
        else:
            given, wanted = _as_lines(given), _as_lines(wanted)
        tests.append({"input": given, "output": wanted})
    return json.dumps(tests), function


def _are_wrapped(outputs: Sequence[Any], starter_code: str) -> bool:
    """Return True if each output is a list around the value, as APPS has them; a list may also be the value itself."""
    if not all(isinstance(value, list) and len(value) == 1 for value in outputs):
        return False
    return not _RETURNS_LIST.search(starter_code) or all(isinstance(value[0], list) for value in outputs)


def _call(arguments: Any, value: Any) -> tuple[str, str]:
    """Return the arguments as lines, and the value, both as JSON; text is JSON already."""
    if isinstance(arguments, str):
        return arguments, value if isinstance(value, str) else json.dumps(value)
    if not isinstance(arguments, list | tuple):
        raise BadRow(f"the arguments of a call are no list but {type(arguments).__name__}", "tests")
    return "\n".join(map(_literal, arguments)), json.dumps(value)


def _as_lines(value: Any) -> str:
    """Return a program's input or output as text; a list holds its lines."""
    if isinstance(value, list | tuple):
        return "\n".join(map(_as_lines, value))
    return str(value)


def _literal(value: Any) -> str:
    """Return a value as JSON, or as a Python literal if JSON would change it (a tuple, a set)."""
    try:
        text = json.dumps(value)
        if json.loads(text) == value:
            return text
        return repr(value)
    except TypeError:
        return repr(value)


def _calls(source: str) -> tuple[str, str]:
    """Return the calls of assert statements as tests, and the function's name.

    The statements are compared here and not run, because a program could make any `==` true.
    """
    try:
        statements = list(_statements(ast.parse(source)))
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise BadRow(f"assert statements that are no Python ({error})", "tests") from error
    calls = [_asserted(statement) for statement in statements]
    names = sorted({name for name, _, _ in calls})
    if len(names) > 1:
        raise BadRow(f"tests of several functions ({', '.join(names)})", "tests")
    tests = []
    for _, given, wanted in calls:
        tests.append({"input": given, "output": wanted})
    return json.dumps(tests), "".join(names)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that test something, those of HumanEval's function `check` too."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            body = node.body
        else:
            body = [node]
        for statement in body:
            is_true = isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Constant)
            if not is_true and not isinstance(statement, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign):
                yield statement


def _asserted(statement: ast.stmt) -> tuple[str, str, str]:
    """Return the function, the arguments and the value of `assert f(...) == value`.

    Raises:
        BadRow: the statement says something else.
    """
    test = statement.test if isinstance(statement, ast.Assert) else None
    call: ast.expr | None = test
    value: ast.expr = ast.Constant(value=True)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        call = test.operand
        value = ast.Constant(value=False)
    elif isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq | ast.Is):
        sides = [test.left, test.comparators[0]]
        call, value = sides if isinstance(sides[0], ast.Call) else reversed(sides)
    try:
        if not isinstance(call, ast.Call) or call.keywords:
            raise ValueError("no call with positional arguments")
        if isinstance(call.func, ast.Name):
            name = call.func.id
        else:
            name = getattr(call.func, "attr", "")
        arguments = []
        for argument in call.args:
            arguments.append(_literal(ast.literal_eval(argument)))
        return name, "\n".join(arguments), json.dumps(ast.literal_eval(value))
    except (ValueError, TypeError) as error:
        text = " ".join(ast.unparse(statement).split())[:80]
        raise BadRow(f"`{text}` cannot be read; write it as `assert f(2) == 4`, with literals", "tests") from error
