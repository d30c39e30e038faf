"""Judges the program of one completion by running it on every test. Runs in a reward worker."""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import TYPE_CHECKING

from lit_rlvr.rewards.code_tests import Case, read_tests
from lit_rlvr.rewards.sandbox import Limits, ProgramFailed, run

if TYPE_CHECKING:
    from lit_rlvr.types import Status

SHOWN = 80
"""Characters of an output to show in a detail."""

_BLOCK = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(r"(?:(?:python|py)[\d.]*)?", re.IGNORECASE)


def check(text: str, cells: tuple[str, ...], function: str, limits: Limits) -> tuple[bool, Status, str]:
    """Whether the program in `text` passes every test; stops at the first failure.

    A script's output is right if it equals the expected output line by line (`same_output`); a function's value is
    right if it equals the expected one as JSON, so that a tuple equals a list (LiveCodeBench, Jain et al. 2024).

    Args:
        text: a completion.
        cells: tests in the form that `read_tests` reads, one after another.
        function: the function to call, or the method of a class `Solution`; "" = the program is a script.
        limits: the limits of each test.

    Returns:
        (correct, status, which test failed and why). An exception or a crash of the program has status "ok".

    Raises:
        ValueError: the tests cannot be read.
        RuntimeError: the program could not be confined.
    """
    program = extract(text)
    if not program:
        return False, "parse_fail", "no code block"
    tests = _tests(cells)
    for number, test in enumerate(tests, 1):
        place = f"test {number} of {len(tests)}"
        try:
            output = run(program, test.input, limits, function)
        except ProgramFailed as failure:
            return False, failure.status, f"{place}: {failure.reason}"
        if not (same_value if function else same_output)(test.output, output):
            return False, "ok", f"{place}: {_short(output)} is not {_short(test.output)}"
    return True, "ok", f"{len(tests)} tests passed"


def extract(text: str) -> str:
    """The program of a completion, or "": the last fenced block after the last `</think>` that is marked as Python or
    has no language."""
    blocks = _BLOCK.findall(text.rpartition("</think>")[2])
    return next((code for tag, code in reversed(blocks) if _PYTHON.fullmatch(tag.strip()) and code.strip()), "")


def same_output(expected: str, found: str) -> bool:
    """Whether two outputs have the same lines, ignoring space around each line and around the whole.

    Lines that differ as text still match if their words are equal numbers: "1.0 2" and "1 2.00".
    """
    wanted, lines = expected.strip().split("\n"), found.strip().split("\n")
    return len(wanted) == len(lines) and all(map(_same_line, wanted, lines))


def same_value(expected: str, found: str) -> bool:
    """Whether two JSON texts have equal values; integers may be of any length."""
    wanted = json.loads(expected, parse_int=Decimal)
    try:
        return bool(wanted == json.loads(found, parse_int=Decimal))
    except ValueError:  # the program ended without a value
        return False


def _same_line(expected: str, found: str) -> bool:
    if expected.strip() == found.strip():
        return True
    try:
        return [Decimal(word) for word in expected.split()] == [Decimal(word) for word in found.split()]
    except InvalidOperation:  # not a number
        return False


@lru_cache(maxsize=1)  # the completions of a group have the same tests
def _tests(cells: tuple[str, ...]) -> list[Case]:
    return [test for cell in cells for test in read_tests(cell)]


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
