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

import pytest
from hostile_answers import assert_linear

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import CodeTests, code, code as code_tests
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
        ("  ```python\n  a\n    b\n  ```", "a\n  b\n"),
        ("1. Code:\n   ```python\n   print(3)\n   ```", "print(3)\n"),
        ("- ```python\n  if a:\n\n      b\n  ```\n- Done.", "if a:\n\n    b\n"),
        ("The code: ```python\na\n```", "a\n"),
        ("> ```python\n> a\n> ```", "a\n"),
        ("```python\na\n```\nOutput:\n```\n3\n```", "a\n"),
        ("```\na\n```\nOutput:\n```\n3\n```", "a\n"),
        ("```\na\n```\n**Sample output:**\n```\n3\n```", "a\n"),
        ("Sample input:\n```\n3\n```\nCode:\n```\na\n```", "a\n"),
        ('```python title="a.py"\na\n```', "a\n"),
        ("```{.python}\na\n```", "a\n"),
        ("```{.python .numberLines}\na\n```", "a\n"),
        ("```{python}\na\n```", "a\n"),
        ("```python:a.py\na\n```", "a\n"),
        ("```python, linenos\na\n```", "a\n"),
        ('```title="a.py"\na\n```', "a\n"),
        ("````python\na\n```\nb\n````", "a\n```\nb\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("```python\na\n```python\nb\n```", "b\n"),
        ("```python\na```", "a"),
        ("<think>\n```python\na\n```", ""),
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


G = "def g(x):\n    return x * x\n"


def blocks(*programs: str) -> str:
    return "\nNext:\n".join(f"```python\n{program}```" for program in programs)


HELPER, CALLER = "import math\ndef h(x):\n    return x\n", "def g(x):\n    return h(x)\n"
GLOBAL = "def solve():\n    global n\n    n = 21\n    print(n * 2)\nsolve()\n"
SOLVE, READS = "def solve():\n    print(int(input()))\nsolve()\n", "print(g(int(input())))\n"


@pytest.mark.parametrize(
    ("programs", "function", "chosen"),
    [
        ((G, "print(g(2))\n"), "g", (G,)),
        (("def g(x):\n    return 1\n", G, "assert 1\n"), "g", (G,)),
        ((HELPER, CALLER, "print(g(2))\n"), "g", (HELPER, CALLER)),
        (("g = lambda x: x\n", "print(g(2))\n"), "g", ("g = lambda x: x\n",)),
        ((SOLVE, "solve()\n"), "", (SOLVE,)),
        (("import numpy as np\n", "print(np.pi)\n"), "", ("import numpy as np\n", "print(np.pi)\n")),
        (("import os.path\n", "print(os.sep)\n"), "", ("import os.path\n", "print(os.sep)\n")),
        ((HELPER, "def f(h):\n    return h\nprint(f(1))\n"), "", ("def f(h):\n    return h\nprint(f(1))\n",)),
        ((G, READS), "", (G, READS)),
        (("print(1)\n", "print(2)\n"), "", ("print(2)\n",)),
        (("n = int(input())\n", "print(n)\n"), "", ("n = int(input())\n", "print(n)\n")),
        (("n = int(input())\nprint(n)\n", GLOBAL), "", (GLOBAL,)),
        (
            ("n = int(input())\nprint(n)\n", GLOBAL.replace("n = 21", "import n")),
            "",
            (GLOBAL.replace("n = 21", "import n"),),
        ),
        (("n = 2\n", GLOBAL.replace("n = 21", "m = n")), "", ("n = 2\n", GLOBAL.replace("n = 21", "m = n"))),
    ],
)
def test_usage_is_no_program_and_definitions_belong_to_it(
    programs: tuple[str, ...], function: str, chosen: tuple[str, ...]
) -> None:
    assert extract_program(blocks(*programs), function) == "\n".join(chosen)


def test_blocks_around_the_program_do_not_spoil_its_verdict() -> None:
    three, nine = (cell(("", "3")),), (cell(("3", "9")),)
    for text in ("1. Code:\n   ```python\n   print(3)\n   ```", "```python\nprint(3)\n```\nOutput:\n```\n3\n```"):
        assert check_code(text, three, "", LIMITS)[:2] == (True, "ok")
    assert check_code(blocks(G, "print(g(2))\n"), nine, "g", LIMITS)[:2] == (True, "ok")


@pytest.mark.parametrize("piece", ["```", "```\n", "```python\n", "> ", "~~~\n", "```a\nx\n```\n", "`", "a "])
def test_hostile_texts_are_searched_quickly(piece: str) -> None:
    assert_linear(lambda size: extract_program(piece * size), 5000)


def test_a_program_may_be_nested_deeply() -> None:
    """Deeper than Python's stack, but not so deep that its parser refuses it."""
    assert extract_program(blocks("n = 1\n", "lambda: " * 1500 + "n\n")) == "lambda: " * 1500 + "n\n"


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


def test_floats_are_exact_unless_a_tolerance_is_set() -> None:
    plus, tests = "```python\ndef g(a, b):\n    return a + b\n```", (cell(("0.1\n0.2", "0.3")),)
    assert not check_code(plus, tests, "g", LIMITS)[0] and check_code(plus, tests, "g", LIMITS, 1e-6)[0]
    third = "```python\nprint(1/3)\n```"
    assert check_code(third, (cell(("", "0.333333")),), "", LIMITS, 1e-6)[0]
    assert not check_code(third, (cell(("", "0.333")),), "", LIMITS, 1e-6)[0]
    assert CodeTests(float_tolerance=1e-6).float_tolerance == 1e-6
    sample = Sample("a", "?", "1 tests", row={"tests": (cell(("", "0.333333")),)})
    results = [CodeTests(float_tolerance=t)(Completion(third, (1,), "stop"), sample).correct for t in (0.0, 1e-6)]
    assert results == [False, True]
    for wrong in (-1.0, 1.0):
        with pytest.raises(UserError, match="float_tolerance"):
            CodeTests(float_tolerance=wrong)


@pytest.mark.parametrize(
    ("compare", "expected", "found", "same"),
    [
        (same_output, "x = 0.333333", "x = 0.3333333", True),
        (same_output, "1000000.0", "1000000.5", True),
        (same_output, "3", "4", False),
        (same_output, "1000000000", "1000000001", False),
        (same_output, "0.5 a", "0.5 b", False),
        (same_output, "NaN 0.5", "0.5 NaN", False),
        (same_output, "1e999999999", "0.5", False),
        (same_value, "[0.3, [1]]", "[0.30000000000000004, [1]]", True),
        (same_value, '{"a": 0.3}', '{"a": 0.3000001}', True),
        (same_value, '{"a": 0.3}', '{"b": 0.3}', False),
        (same_value, "1000000000", "1000000001", False),
        (same_value, '"0.3"', "0.3", False),
        (same_value, "[0.3]", "[0.3, 0.3]", False),
        (same_value, "0.5", "9" * 5000, False),
    ],
)
def test_a_tolerance_is_for_numbers_with_a_fraction(
    compare: Callable[..., bool], expected: str, found: str, same: bool
) -> None:
    assert compare(expected, found, 1e-6) is same


# whose fault it is


def test_all_tests_must_pass() -> None:
    assert judge(ADD) == RewardResult(1.0, True, "ok", "3 tests passed")
    assert judge("print(3)") == RewardResult(0.0, False, "ok", "test 2 of 3: '3' is not '5'")


@pytest.mark.parametrize(
    ("program", "correct"),
    [
        ("pass", True),
        ("sys.exit()", True),
        ("sys.exit(0)", True),
        ("sys.exit(1)", False),
        ("sys.exit(256)", False),
        ("sys.exit('no')", False),
        ("sys.stdout.close()\nsys.exit(1)", False),
    ],
)
def test_a_program_that_gives_up_is_wrong_where_nothing_is_expected(program: str, correct: bool) -> None:
    assert judge(program, cell(("1", ""))).correct is correct


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
}


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


@pytest.mark.parametrize("indent", ["  ", "    ", "        ", "\t"])
@pytest.mark.parametrize("tag", ["", "python"])
def test_a_fence_in_a_docstring_or_comment_closes_nothing(indent: str, tag: str) -> None:
    example = f"{indent}```{tag}\n{indent}>>> f()\n{indent}```\n"
    program = f'def f():\n{indent}"""Return 1.\n\n{example}{indent}"""\n{indent}# ```\n{indent}return 1\n'
    assert extract_program(f"```python\n{program}```\nThat is all.", "f") == program


@pytest.mark.parametrize(
    "program",
    [
        'def f():\n    s = """\n```\n"""\n    return s\n',
        'def f():\n    """```\n    f()\n    ```"""\n    return 1\n',
        "def f():\n    s = '''\n```\n''' + '\"\"\"'\n    return s  # it's \"\"\"\n",
    ],
)
def test_a_fence_in_a_text_of_three_quotes_closes_nothing(program: str) -> None:
    assert extract_program(f"```python\n{program}```\nThat is all.\n```\nits output\n```", "f") == program


def test_a_text_of_three_quotes_that_never_ends_ends_with_its_block() -> None:
    assert extract_program('```python\nx = """1\n```\nDone.\n```\n2\n```').strip() == 'x = """1'


def test_a_fence_closes_its_block_in_a_list_and_where_no_other_does() -> None:
    assert extract_program("1. ```python\n   x = 1\n   ```\n\nDone.", "").strip() == "x = 1"
    assert extract_program("```python\nx = 1\n      ```\nDone.", "").strip() == "x = 1"
    assert extract_program("```python\nx = 1```\nDone.", "").strip() == "x = 1"
