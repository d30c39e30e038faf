"""The reward of programs that pass tests, which run in a sandbox."""

from __future__ import annotations

import ast
import base64
import json
import math
import pickletools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import repeat
from symtable import Symbol, SymbolTable, symtable
from typing import Any, NamedTuple

from lit_rlvr.common.arguments import check_within
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import CheckedReward, verdict
from lit_rlvr.rewards.fences import fenced_blocks
from lit_rlvr.speech.thoughts import without_thoughts
from lit_rlvr.types import ExecutionFailed, Pair, RewardResult, Sample, Status
from lit_rlvr.workers.pool import shared_pool
from lit_rlvr.workers.sandbox import ProgramLimits, is_supported, run

CHECK_SECONDS = 3600.0
"""Wall-clock and CPU seconds of one check; no check takes so long, because each test has its own limits."""
CHECK_MEMORY_MB = 4096
"""Memory for the tests of one problem; a program gets its own `memory_mb`."""


class CodeTests(CheckedReward):
    """A reward of 1 for a completion whose Python program passes all tests, else 0; it reports `correct`.

    `CodeProblems` provides the tests: `sample.row["tests"]` and, if a function is called, `sample.row["function"]`.
    `check_code` below defines which text is the program and when a test passes;
    `lit_rlvr.workers.sandbox` defines what a program cannot do. Status "parse_fail" means no code block, and "timeout"
    means that the program hit a limit: both are wrong, and so is an exception or a crash (status "ok"). `detail` names
    the first failed test. Unreadable tests, or a sandbox that does not start, give status "error".

    Args:
        cpu_seconds: CPU time of one test, a whole number; a program that sleeps is stopped after ten times that.
        memory_mb: address space of a program in MiB, including about 30 for Python.
        float_tolerance: the largest error of a number with a fraction, absolute or relative, such as 1e-6. 0: numbers
            must be equal, as in LiveCodeBench, where 0.1 + 0.2 is not 0.3.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.

    Raises:
        UserError: a limit is not positive, or the sandbox does not support this machine.
    """

    def __init__(
        self,
        cpu_seconds: int = 6,
        memory_mb: int = 2048,
        float_tolerance: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within("[1, inf)", "rewards.CodeTests", cpu_seconds=cpu_seconds, memory_mb=memory_mb)
        check_within("[0, 1)", "rewards.CodeTests", float_tolerance=float_tolerance)
        if not is_supported():
            raise UserError("rewards.CodeTests runs untrusted programs only on Linux, on x86_64 or aarch64")
        self.limits = ProgramLimits(cpu_seconds, memory_mb)
        self.float_tolerance = float_tolerance

    def gold_completion(self, sample: Sample) -> str | None:
        program = sample.row.get("solution")
        if isinstance(program, str):
            return f"```python\n{program}\n```"
        return None

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        arguments = []
        for c, sample in pairs:
            arguments.append((c.full_text, *_tests(sample), self.limits, self.float_tolerance))
        outcomes = shared_pool().run(
            "lit_rlvr.rewards.code:check_code",
            arguments,
            cpu_seconds=CHECK_SECONDS,
            wall_seconds=CHECK_SECONDS,
            memory_mb=CHECK_MEMORY_MB,
        )
        return [verdict(outcome) for outcome in outcomes]


def _tests(sample: Sample) -> tuple[tuple[str, ...], str]:
    cells = sample.row.get("tests")
    if not cells:
        raise UserError(
            f"{sample.source or sample.id}: no `tests` in its row; CodeTests needs the data of CodeProblems, or rows "
            "with a `tests` entry"
        )
    return tuple(cells), str(sample.row.get("function") or "")


MAX_BYTES = 512 << 20
"""Size limit of one problem's unpacked tests."""

TEXT_OPERATIONS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
HARMLESS_OPCODES = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
"""Further operations of a pickle that holds only a text."""


class Case(NamedTuple):
    """One test: a program's standard input and output, or a call's arguments (one line of JSON each) and its value."""

    input: str
    output: str


def read_tests(cell: str) -> list[Case]:
    """Read the tests in a cell: JSON `[{"input": ..., "output": ...}, ...]`, or base64 of zlib of its pickle.

    Raises:
        ValueError: it is neither; the message says why.
    """
    if cell.lstrip().startswith("["):
        text = cell
    else:
        text = unpack(cell)
    try:
        tests = []
        for test in json.loads(text):
            tests.append(Case(test["input"], test["output"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no list of tests with input and output ({type(error).__name__}: {error})") from error
    if not all(isinstance(text, str) for test in tests for text in test):
        raise ValueError("the input and output of a test must be text")
    return tests


def check_call_tests(tests: Sequence[Case]) -> None:
    """Refuse tests whose input lines and output are not JSON; a line may also be a Python tuple, set, list or dict.

    Raises:
        ValueError: a line is not JSON; the message says which.
    """
    for number, test in enumerate(tests, 1):
        try:
            for text in filter(str.strip, test.input.split("\n")):
                _check_argument(text.strip())
            json.loads(test.output, parse_int=str)  # integers may be of any length
        except (ValueError, SyntaxError, RecursionError) as error:
            raise ValueError(f"test {number} of a function is not JSON ({error})") from error


def _check_argument(text: str) -> None:
    try:
        json.loads(text, parse_int=str)
    except ValueError:
        if not text.startswith(("(", "{", "[", "set()")):
            raise
        ast.literal_eval(text)


def unpack(cell: str) -> str:
    """Return the text in a pickle that is compressed with zlib and encoded in base64.

    Raises:
        ValueError: it is not in this form, it is larger than `MAX_BYTES`, or the pickle holds more than a text.
    """
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(cell, validate=True), MAX_BYTES)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"neither JSON nor base64 of zlib ({error})") from error
    if not stream.eof:
        raise ValueError(f"cut off, or more than {MAX_BYTES >> 20} MiB when unpacked")
    texts = []
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in TEXT_OPERATIONS:
            texts.append(argument)
        elif operation.name not in HARMLESS_OPCODES:
            raise ValueError(f"its pickle is refused, it holds more than a text ({operation.name})")
    if len(texts) != 1:
        raise ValueError(f"its pickle holds {len(texts)} texts, not one")
    return str(texts[0])


OUTPUT_CHARACTERS = 80
"""Most characters of an output in a detail."""

_PYTHON = re.compile(r"i?(?:python|py|pypy)[\d.]*")
_OUTPUT = re.compile(r"(?i).*\b(?:outputs?|results?|prints?|printed|stdout|inputs?)\b[^.\w]*")  # "Sample output:"
_READS = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0")
_WRITES = re.compile(r"\bprint\s*\(|\bstdout\b")


def check_code(
    text: str, cells: tuple[str, ...], function: str, limits: ProgramLimits, float_tolerance: float = 0.0
) -> tuple[bool, Status, str]:
    """Run the program in `text` on every test, up to the first failure.

    A script's output is right if it equals the expected output line by line (`same_output`); a function's value is
    right if it equals the expected one as JSON, so that a tuple equals a list (LiveCodeBench, Jain et al. 2024).

    Args:
        text: a completion.
        cells: tests in the form that `read_tests` reads, one after another.
        function: the function to call, or the method of a class `Solution`; "" = the program is a script.
        limits: the limits of each test.
        float_tolerance: the largest error of a number with a fraction, absolute or relative.

    Returns:
        (correct, status, which test failed and why). An exception or a crash of the program has status "ok".

    Raises:
        ValueError: the tests cannot be read.
        RuntimeError: the program could not be confined.
    """
    program = extract_program(text, function)
    if not program:
        return False, "parse_fail", "no code block"
    tests = _cases(cells)
    for number, test in enumerate(tests, 1):
        place = f"test {number} of {len(tests)}"
        try:
            output = run(program, test.input, limits, function)
        except ExecutionFailed as failure:
            return False, failure.status, f"{place}: {failure.reason}"
        if not (same_value if function else same_output)(test.output, output, float_tolerance):
            return False, "ok", f"{place}: {_short(output)} is not {_short(test.output)}"
    return True, "ok", f"{len(tests)} tests passed"


def extract_program(text: str, function: str = "") -> str:
    """Return the program of a completion, or "".

    It is the last fenced block behind the thoughts that is tagged as Python or, if there is none, has no tag. For a
    function it is the last one that defines it. Earlier blocks whose names it uses belong to it, unless they alone read
    the input and print: then it only shows their usage. Blocks under the heading "Output" or "Input" do not count.

    Args:
        text: the completion.
        function: the function that the tests call; "" = none.
    """
    fenced = []
    for block in fenced_blocks(without_thoughts(text)):
        if block.content.strip():
            fenced.append(block)
    tagged = []
    for block in fenced:
        if _PYTHON.fullmatch(block.language):
            tagged.append(block)
    blocks = tagged or [block for block in fenced if not block.language]
    programs = [block.content for block in blocks if not _OUTPUT.fullmatch(block.heading)] or [
        block.content for block in blocks
    ]
    if function:
        defines = re.compile(rf"\bdef\s+{re.escape(function)}\b|^{re.escape(function)}\s*=", re.MULTILINE)
        last = max((k for k, program in enumerate(programs) if defines.search(program)), default=len(programs) - 1)
        programs = programs[: last + 1]
    if programs:
        return _with_definitions(programs, is_script=not function)
    return ""


def _with_definitions(programs: Sequence[str], is_script: bool) -> str:
    """Return the last program behind the earlier ones whose names it uses."""
    chosen = programs[-1]
    needed = _names(programs[-1])[1]
    for program in reversed(programs[:-1]):
        defined, used = _names(program)
        if not defined & needed:
            continue
        if is_script and _READS.search(program) and _WRITES.search(program) and not _READS.search(chosen):
            return _with_definitions(programs[: programs.index(program) + 1], is_script)
        chosen = f"{program.rstrip()}\n\n{chosen}"
        needed = (needed - defined) | used
    return chosen


def _names(program: str) -> tuple[set[str], set[str]]:
    """Return the names that a program binds at its top level, and those that it uses and nowhere binds."""
    try:
        top, *inner = _tables(symtable(program, "a program", "exec"))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return set(), set()
    symbols = []
    for table in (top, *inner):
        for symbol in table.get_symbols():
            if symbol.is_global():
                symbols.append(symbol)
    bound = _bound(top.get_symbols())
    used = set()
    for symbol in symbols:
        if symbol.is_referenced():
            used.add(symbol.get_name())
    return bound, used - bound - _bound(symbols)


def _bound(symbols: Iterable[Symbol]) -> set[str]:
    names = set()
    for symbol in symbols:
        if symbol.is_assigned() or symbol.is_imported():
            names.add(symbol.get_name())
    return names


def _tables(table: SymbolTable) -> Iterator[SymbolTable]:
    """Yield the symbols of a scope, and those of all scopes in it."""
    yield table
    for child in table.get_children():
        yield from _tables(child)


def same_output(expected: str, output: str, tolerance: float = 0.0) -> bool:
    """Return True if two outputs have the same lines, ignoring space around each line and around the whole.

    Lines that differ as text still match if their words are equal numbers: "1.0 2" and "1 2.00".

    Args:
        expected: the output that the test asks for.
        output: the output of the program.
        tolerance: the largest error of a number with a fraction; above 0, numbers may stand between equal words.
    """
    wanted = expected.strip().split("\n")
    lines = output.strip().split("\n")
    return len(wanted) == len(lines) and all(_same_line(*pair, tolerance) for pair in zip(wanted, lines, strict=True))


def same_value(expected: str, returned: str, tolerance: float = 0.0) -> bool:
    """Return True if two JSON texts have equal values; integers may be of any length.

    Args:
        expected: the value that the test asks for, as JSON.
        returned: the value that the program returned, as JSON.
        tolerance: the largest error of a number with a fraction.
    """
    wanted = json.loads(expected, parse_int=Decimal)
    try:
        value = json.loads(returned, parse_int=Decimal)
        return bool(wanted == value) or (tolerance > 0 and _close_values(wanted, value, tolerance))
    except (ValueError, RecursionError):  # the program ended without a value
        return False


def _close_values(wanted: Any, value: Any, tolerance: float) -> bool:
    if isinstance(wanted, list) and isinstance(value, list):
        return len(wanted) == len(value) and all(
            _close_values(*pair, tolerance) for pair in zip(wanted, value, strict=True)
        )
    if isinstance(wanted, dict) and isinstance(value, dict):
        return wanted.keys() == value.keys() and all(_close_values(wanted[k], value[k], tolerance) for k in wanted)
    if float in (type(wanted), type(value)) and {type(wanted), type(value)} <= {float, Decimal}:
        return math.isclose(wanted, value, rel_tol=tolerance, abs_tol=tolerance)
    return bool(wanted == value)


def _same_line(expected: str, output: str, tolerance: float) -> bool:
    if expected.strip() == output.strip():
        return True
    wanted = expected.split()
    words = output.split()
    try:
        if [Decimal(word) for word in wanted] == [Decimal(word) for word in words]:
            return True
    except InvalidOperation:  # not a number
        pass
    return tolerance > 0 and len(wanted) == len(words) and all(map(_close_words, wanted, words, repeat(tolerance)))


def _close_words(expected: str, word: str, tolerance: float) -> bool:
    if expected == word:
        return True
    try:
        wanted = Decimal(expected)
        value = Decimal(word)
    except InvalidOperation:  # not a number
        return False
    if not (wanted.is_finite() and value.is_finite() and any(mark in expected + word for mark in ".eE")):
        return False
    return math.isclose(wanted, value, rel_tol=tolerance, abs_tol=tolerance)


@lru_cache(maxsize=1)  # the completions of a group have the same tests
def _cases(cells: tuple[str, ...]) -> list[Case]:
    cases = []
    for cell in cells:
        cases.extend(read_tests(cell))
    return cases


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= OUTPUT_CHARACTERS else f"{text[:OUTPUT_CHARACTERS]}...")
