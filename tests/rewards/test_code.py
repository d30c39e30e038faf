"""CodeTests: which text is the program, when a test is passed, and whose fault a failure is."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import CodeTests, code
from lit_rlvr.rewards import code as code_tests
from lit_rlvr.rewards.code import check_call_tests, check_code, extract_program, read_tests, same_output, same_value
from lit_rlvr.types import Completion, RewardResult, Sample
from lit_rlvr.workers.sandbox import ProgramLimits

LIMITS = ProgramLimits(cpu_seconds=60, memory_mb=512)
ADD = "print(sum(map(int, sys.stdin.read().split())))"


def cell(*pairs: tuple[str, str]) -> str:
    return json.dumps([{"input": text, "output": output, "testtype": "stdin"} for text, output in pairs])


SUMS = cell(("1 2\n", "3\n"), ("5", "5"), ("", "0"))


def packed(value: Any, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def judge(program: str, cells: str = SUMS, function: str = "", **options: Any) -> RewardResult:
    sample = Sample("a", "?", "3 tests", row={"tests": (cells,), "function": function})
    return CodeTests(**options)(Completion(f"Here:\n```python\n{program}\n```", (1,), "stop"), sample)


# what the program is


@pytest.mark.parametrize(
    "text,program",
    [
        ("```python\na\nb\n```", "a\nb\n"),
        ("```\na\n```", "a\n"),
        ("```py\na\n```", "a\n"),
        ("``` Python3 \na\n```", "a\n"),
        ("First\n```python\na\n```\nbut no:\n```python\nb\n```\nDone.", "b\n"),
        ("```python\na\n```\nIt prints\n```text\n3\n```\nand in C\n```cpp\nint b;\n```", "a\n"),
        ("```python\na\n```\n```python\n\n```", "a\n"),
        ("  ```python\n  a\n  ```", "  a\n"),
        ("```python\nprint('```')\n```", "print('```')\n"),
        ("```python\na", "a"),
        ("<think>\n```python\na\n```\n</think>\n```python\nb\n```", "b\n"),
        ("<think>\n```python\na\n```\n</think>\nI do not know.", ""),
        ("print(3)", ""),
        ("```python print(3)```", ""),
        ("```python\n```", ""),
        ("", ""),
    ],
)
def test_the_program_is_extracted(text: str, program: str) -> None:
    assert extract_program(text) == program


# when a test is passed


@pytest.mark.parametrize(
    "expected,found,same",
    [
        ("3\n", "3", True),
        ("3", "3 \r\n\n", True),
        ("1\n2\n", "\n1  \n  2", True),
        ("1\n\n2", "1\n2", False),
        ("1", "1\n2", False),
        ("1\n2", "1", False),
        ("1 2", "1  2", True),
        ("a b", "a  b", False),
        ("1.0 2", "1 2.00", True),
        ("0.5", ".5", True),
        ("1e3", "1000", True),
        ("0.1", "0.10000000000000001", False),
        ("50000000000000000", "50000000000000001", False),
        ("1 2", "1", False),
        ("1", "1 2", False),
        ("3", "4", False),
        ("Yes", "YES", False),
        ("NaN", "NaN", True),
        ("NaN 1", "NaN 1.0", False),
        ("1", "sNaN", False),
        ("1", "one", False),
        ("one", "1", False),
        ("", "", True),
        ("", "\n", True),
        ("1", "", False),
    ],
)
def test_outputs_are_compared(expected: str, found: str, same: bool) -> None:
    assert same_output(expected, found) is same


@pytest.mark.parametrize(
    "expected,found,same",
    [
        ("[1, 2]", "[1,2]", True),
        ("[1, 2]", "[2, 1]", False),
        ("1", "1.0", True),
        ("0.3", "0.30000000000000004", False),
        ("true", "1", True),
        ("null", "0", False),
        ('"1"', "1", False),
        ('{"1": [2]}', '{"1": [2]}', True),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 5000, "9" * 4999 + "8", False),
        ("1", "", False),
        ("1", "nonsense", False),
    ],
)
def test_values_are_compared(expected: str, found: str, same: bool) -> None:
    assert same_value(expected, found) is same


# whose fault it is


def test_all_tests_must_pass() -> None:
    assert judge(ADD) == RewardResult(1.0, True, "ok", "3 tests passed")
    lucky = judge("print(3)")
    assert lucky == RewardResult(0.0, False, "ok", "test 2 of 3: '3' is not '5'")


def test_functions_are_called() -> None:
    cells = cell(("[1, 2]\n3", "[1, 2, 3]"), ("[]\n1", "[1]"))
    method = "class Solution:\n    def add(self, a: List[int], b: int) -> List[int]:\n        return (*a, b)"
    assert judge(method, cells, "add") == RewardResult(1.0, True, "ok", "2 tests passed")
    wrong = judge("def add(a, b):\n    return [1, 2, 3]", cells, "add")
    assert wrong == RewardResult(0.0, False, "ok", "test 2 of 2: '[1, 2, 3]' is not '[1]'")
    for cheat in ("import os\nos._exit(0)", "def add(a, b):\n    raise SystemExit", "import os\nos.closerange(3, 99)"):
        result = judge(cheat, cells, "add")
        assert (result.value, result.correct, result.status) == (0.0, False, "ok"), cheat


STATUSES = {
    "right": (ADD, True, "ok", "3 tests passed"),
    "wrong": ("print(3)", False, "ok", "test 2 of 3: '3' is not '5'"),
    "exception": ("1 / 0", False, "ok", "test 1 of 3: ZeroDivisionError: division by zero"),
    "syntax": ("print(", False, "ok", "test 1 of 3: SyntaxError: '(' was never closed"),
    "endless": ("while True: pass", False, "timeout", "test 1 of 3: out of CPU time"),
    "endless later": ("a = input()\nwhile a == '5': pass\nprint(3)", False, "timeout", "test 2 of 3: out of CPU time"),
    "memory": ("bytearray(10**10)", False, "timeout", "test 1 of 3: out of memory"),
    "nothing": ("", False, "parse_fail", "no code block"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATUSES)
def test_every_outcome_has_its_status(name: str) -> None:
    program, correct, status, detail = STATUSES[name]
    result = judge(program, cpu_seconds=1 if "CPU" in detail else 60, memory_mb=512)
    assert result == RewardResult(float(correct), correct, status, detail)  # type: ignore[arg-type]


@pytest.mark.parametrize("cells", ["nonsense", "[1]", cell(("1", "2")).replace("output", "value")])
def test_tests_that_cannot_be_read_are_the_checkers_failure(cells: str) -> None:
    result = judge(ADD, cells)
    assert (result.value, result.correct, result.status) == (0.0, None, "error") and "ValueError" in result.detail


def test_a_sandbox_that_does_not_start_is_the_checkers_failure() -> None:
    result = judge(ADD, memory_mb=1 << 60)
    assert (result.value, result.correct, result.status) == (0.0, None, "error")
    assert "the sandbox did not start" in result.detail


def test_a_long_output_is_shown_in_part() -> None:
    result = judge("print('x' * 10**6)")
    assert len(result.detail) < 200 and result.detail.endswith("x...' is not '3'")


def test_truncated_is_wrong_unless_told_otherwise() -> None:
    sample = Sample("a", "?", "3 tests", row={"tests": (SUMS,)})
    cut = Completion(f"```python\n{ADD}", (1,), "length")
    assert CodeTests()(cut, sample) == RewardResult(0.0, False, "ok", "cut off")
    assert CodeTests(truncated_is_wrong=False)(cut, sample).correct is True


def test_results_keep_their_order_and_nothing_is_left() -> None:
    samples = [Sample(str(n), "?", "1 tests", row={"tests": (cell(("", str(n % 3))),)}) for n in range(12)]
    pairs = [(Completion("```python\nprint(1)\n```", (1,), "stop"), sample) for sample in samples]
    assert [result.correct for result in CodeTests().score(pairs)] == [n % 3 == 1 for n in range(12)]
    assert not [child for worker in psutil.Process().children() for child in worker.children()]


def test_options_and_rows_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ("cpu_seconds", "memory_mb"):
        with pytest.raises(UserError, match=f"rewards.CodeTests.{option}: 0 must lie in"):
            CodeTests(**{option: 0})
    with pytest.raises(UserError, match="f:1: no `tests` in its row; CodeTests needs the data of CodeProblems"):
        CodeTests()(Completion(f"```\n{ADD}\n```", (1,), "stop"), Sample("a", "?", "3", source="f:1"))
    monkeypatch.setattr(code, "is_supported", lambda: False)
    with pytest.raises(UserError, match="only on Linux"):
        CodeTests()


# the tests themselves


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_packed_tests_are_read(protocol: int) -> None:
    cells = packed(json.dumps([{"input": "é\n", "output": "2"}], ensure_ascii=False), protocol)
    assert read_tests(cells) == [("é\n", "2")]
    assert check_code(f"```\n{ADD}\n```", (SUMS, packed(SUMS, protocol)), "", LIMITS)[2] == "6 tests passed"


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_holds_more_than_a_text_is_refused(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for value in (Evil(tmp_path / "evil"), os.system, [SUMS], {"tests": SUMS}, (SUMS,), SUMS.encode(), 1, None):
            with pytest.raises(ValueError, match="its pickle is refused, it holds more than a text"):
                read_tests(packed(value, protocol))
    assert list(tmp_path.iterdir()) == []


BROKEN = {
    "no base64": ("!", "neither JSON nor base64 of zlib"),
    "no zlib": (base64.b64encode(b"nonsense").decode(), "neither JSON nor base64 of zlib"),
    "cut off": (base64.b64encode(zlib.compress(pickle.dumps(SUMS))[:-4]).decode(), "cut off, or more than"),
    "cut pickle": (base64.b64encode(zlib.compress(pickle.dumps(SUMS)[:-1])).decode(), "exhausted before seeing STOP"),
    "empty pickle": (base64.b64encode(zlib.compress(b".")).decode(), "holds 0 texts"),
    "empty": ("", "cut off"),
    "no JSON": (packed("tests"), "no list of tests with input and output"),
    "deep": ("[" * 100_000, "no list of tests"),
    "numbers": ('[{"input": 1, "output": "1"}]', "must be text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tests_say_why(name: str) -> None:
    text, message = BROKEN[name]
    with pytest.raises(ValueError, match=message):
        read_tests(text)


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_tests, "MAX_BYTES", 10**6)
    bomb = packed(json.dumps([{"input": "0" * 10**8, "output": ""}]))
    assert len(bomb) < 200_000
    with pytest.raises(ValueError, match="cut off, or more than"):
        read_tests(bomb)


def test_calls_need_json() -> None:
    check_call_tests(read_tests(cell((f"[1]\n\n{'9' * 5000}", "null"), ("", "1"))))
    for pair in (("[1", "1"), ("1", "one"), ("1 2", "3")):
        with pytest.raises(ValueError, match="test 2 of a function is not JSON"):
            check_call_tests(read_tests(cell(("1", "1"), pair)))
