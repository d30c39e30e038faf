"""CodeProblems on LiveCodeBench's layout, whole and broken."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_rlvr.datamodules import CodeProblems
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import CodeTests, code as code_tests
from lit_rlvr.types import Completion, RewardResult


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def cell(*pairs: tuple[str, str], kind: str = "stdin") -> str:
    return json.dumps([{"input": text, "output": output, "testtype": kind} for text, output in pairs])


SCRIPT = {
    "question_title": "A. Sums",
    "question_content": "Print the sum of {a} and b.",
    "platform": "codeforces",
    "question_id": "1873_A",
    "contest_id": "1873",
    "contest_date": "2023-08-21T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": cell(("1 2\n", "3\n")),
    "private_test_cases": packed(cell(("2 2\n", "4\n"), ("5 5\n", "10\n"))),
    "metadata": "{}",
}
FUNCTION = SCRIPT | {
    "question_id": "2837",
    "contest_date": "2024-02-01T12:30:00",
    "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
    "difficulty": "hard",
    "public_test_cases": cell(("1\n2", "3"), kind="functional"),
    "private_test_cases": cell(("2\n2", "4"), kind="functional"),
    "metadata": '{"func_name": "add"}',
}


@pytest.mark.parametrize(
    ("text", "metadata"),
    [("{}", {}), ("null", None), ('{"func_name": null}', {"func_name": None}), ("{'a': None}", {"a": None}), ("7", 7)],
)
def test_metadata_in_text_are_parsed(jsonl: Any, text: str, metadata: Any) -> None:
    (sample,) = CodeProblems(train=jsonl([SCRIPT | {"metadata": text, "difficulty": 0}])).load("train")
    assert (sample.row["metadata"], sample.category) == (metadata, "0")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_livecodebench_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"test{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in (SCRIPT, FUNCTION)))
    else:
        pq.write_table(pa.Table.from_pylist([SCRIPT, FUNCTION]), path)
    script, function = CodeProblems(train=str(path)).load("train")
    assert script.prompt == (
        "### Question:\nPrint the sum of {a} and b.\n\n### Format: Read the inputs from stdin solve the problem and "
        "write the answer to stdout (do not directly test on the sample inputs). Enclose your code within delimiters "
        "as follows.\n```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )
    assert function.prompt == (
        "### Question:\nPrint the sum of {a} and b.\n\n### Format: You will use the following starter code to write "
        "the solution to the problem and enclose your code within delimiters.\n```python\n"
        "class Solution:\n    def add(self, a: int, b: int) -> int:\n        \n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )
    assert [(s.id, s.answer, s.category) for s in (script, function)] == [
        ("1873_A", "3 tests", "easy"),
        ("2837", "2 tests", "hard"),
    ]
    assert script.row["tests"] == (SCRIPT["public_test_cases"], SCRIPT["private_test_cases"])
    assert (script.row["function"], function.row["function"]) == ("", "add")
    assert script.source == f"{path}:1" and script.row["platform"] == "codeforces"


def test_the_form_stands_around_the_last_question_of_a_conversation(jsonl: Any) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": SCRIPT["question_content"]}]
    plain, told = CodeProblems(train=jsonl([SCRIPT, SCRIPT | {"question_id": "2", "question_content": chat}])).load(
        "train"
    )
    assert told.prompt == [chat[0], {"role": "user", "content": plain.prompt}]


def test_its_tests_are_what_the_reward_runs(jsonl: Any) -> None:
    script, function = CodeProblems(train=jsonl([SCRIPT, FUNCTION])).load("train")
    program = "print(sum(map(int, input().split())))"
    method = "class Solution:\n    def add(self, a, b):\n        return a + b"
    pairs = [
        (Completion(f"```python\n{source}\n```", (1,), "stop"), sample)
        for source, sample in ((program, script), (method, script), (method, function), ("print(3)", script))
    ]
    results = CodeTests().score(pairs)
    assert [result.correct for result in results] == [True, False, True, False]
    assert results[3].detail == "test 2 of 3: '3' is not '4'"


def test_problems_are_taken_by_the_day_of_their_contest(jsonl: Any) -> None:
    """Both ends included; the others are not even unpacked."""
    days = ["2023-12-31T23:59:00", "2024-01-01", "2024-02-29T00:00:00", "2024-03-01"]
    rows = [SCRIPT | {"question_id": str(i), "contest_date": day} for i, day in enumerate(days)]
    rows.append(SCRIPT | {"question_id": "4", "contest_date": "2025-01-01", "private_test_cases": "broken"})
    path = jsonl(rows)

    def taken(since: str | None, until: str | None) -> str:
        return "".join(s.id for s in CodeProblems(train=path, since=since, until=until).load("train"))

    assert (taken("2024-01-01", "2024-02-29"), taken("2024-01-02", "2024-06-01")) == ("12", "23")
    assert taken(None, "2024-01-01") == "01"
    with pytest.raises(UserError, match="1 of 2 rows cannot be used"):
        taken("2024-03-01", None)


def test_days_are_checked(jsonl: Any) -> None:
    for option in ("since", "until"):
        with pytest.raises(UserError, match=f"{option}: 'May 2024' is not a date, write it like 2024-08-01"):
            CodeProblems(**{option: "May 2024"})
    dates = (SCRIPT["contest_date"], None, "soon")
    rows = [SCRIPT | {"question_id": f"q{i}", "contest_date": date} for i, date in enumerate(dates)]
    data = CodeProblems(train=jsonl(rows), since="2020-01-01", reading=ReadingOptions(max_bad_rows=0.9))
    assert len(data.load("train")) == 1
    assert ["date: empty" in str(row) or "'soon' is not a date" in str(row) for row in data.bad_rows["train"]] == [
        True
    ] * 2
    assert len(CodeProblems(train=jsonl(rows)).load("train")) == 3


def test_a_release_is_a_folder_of_several_files(tmp_path: Path) -> None:
    """`test.jsonl` to `test6.jsonl`, as LiveCodeBench's releases add them."""
    for number, name in enumerate(["test.jsonl", "test2.jsonl", "test6.jsonl"]):
        (tmp_path / name).write_text(json.dumps(SCRIPT | {"question_id": str(number)}) + "\n")
    data = CodeProblems(train=f"{tmp_path}:test")
    assert [sample.id for sample in data.load("train")] == ["0", "1", "2"]


def test_other_columns_are_mapped(jsonl: Any) -> None:
    checks = [{"input": "1", "output": "1"}, {"input": "2", "output": "4"}]
    row = {"task": "Square it.", "checks": checks, "about": {"call": "square"}, "level": 3, "key": "s"}
    columns = {"prompt": "task", "tests": "checks", "function": "about.call", "category": "level", "id": "key"}
    (sample,) = CodeProblems(train=jsonl([row]), columns=columns).load("train")
    assert (sample.id, sample.answer, sample.category) == ("s", "2 tests", "3") and "Square it." in str(sample.prompt)
    right = Completion("```python\ndef square(n):\n    return n * n\n```", (1,), "stop")
    assert CodeTests()(right, sample).correct is True
    with pytest.raises(UserError, match="columns: unknown field 'test'; did you mean 'tests'"):
        CodeProblems(columns={"test": "checks"})


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_bad_rows_are_skipped_counted_and_named(jsonl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_tests, "MAX_BYTES", 10**6)
    bad = [
        SCRIPT | {"private_test_cases": packed(Evil(tmp_path / "evil"))},
        SCRIPT | {"private_test_cases": packed("x" * 10**7)},
        SCRIPT | {"private_test_cases": "nonsense"},
        SCRIPT | {"public_test_cases": "[]", "private_test_cases": None},
        SCRIPT | {"question_content": ""},
        SCRIPT | {"metadata": "{"},
        FUNCTION | {"private_test_cases": cell(("2, 2", "4"))},
    ]
    path = jsonl([SCRIPT, *bad])
    data = CodeProblems(train=path, reading=ReadingOptions(max_bad_rows=0.9))
    assert len(data.load("train")) == 1 and not (tmp_path / "evil").exists()
    reasons = [str(row).removeprefix(f"{path}:") for row in data.bad_rows["train"]]
    for reason, start in zip(
        reasons,
        [
            "2: tests: its pickle is refused, it holds more than a text",
            "3: tests: cut off, or more than",
            "4: tests: neither JSON nor base64",
            "5: tests: there are none",
            "6: prompt: empty",
            "7: metadata: broken JSON (Expecting property name",
            "8: tests: test 2 of a function is not JSON",
        ],
        strict=True,
    ):
        assert reason.startswith(start), reason


SQUARE = "def f(n):\n    return n * n"
CHECK = "METADATA = {}\n\ndef check(candidate):\n    assert candidate(3) == 9\n    assert True, 'always'\n"


@pytest.mark.parametrize(
    ("row", "program"),
    [
        ({"tests": '{"fn_name": "f", "inputs": [[3], [4]], "outputs": [[9], [16]]}'}, SQUARE),
        ({"tests": {"fn_name": "f", "inputs": [[3]], "outputs": [9]}}, SQUARE),
        ({"tests": {"inputs": ["3\n"], "outputs": ["9\n"]}}, "print(int(input()) ** 2)"),
        (
            {"input_output": '{"inputs": [["3", "4"]], "outputs": [["9", 16]]}'},
            "print(int(input())**2, int(input())**2, sep='\\n')",
        ),
        ({"tests": {"input": ["3\n"], "output": ["9\n"]}}, "print(int(input()) ** 2)"),
        ({"tests": [{"input": [3], "output": 9, "fn_name": "f", "type": "function_call"}]}, SQUARE),
        ({"test_list": ["assert f(2) == 4", "assert 9 == f(-3), 'no'"]}, SQUARE),
        (
            {"test_list": ["assert f((1, 2)) == (1, 2)", "assert not f(set())", "assert f({1: 2})"]},
            "def f(a):\n    return a if isinstance(a, tuple) else bool(a)",
        ),
        ({"test": CHECK, "entry_point": "f"}, SQUARE),
        (
            {
                "tests": {"fn_name": "f", "inputs": [[3]], "outputs": [[9]]},
                "starter_code": "def f(n: int) -> List[int]:\n",
            },
            "def f(n):\n    return [n * n]",
        ),
    ],
)
def test_other_forms_of_tests_are_run(jsonl: Any, row: dict[str, Any], program: str) -> None:
    (sample,) = CodeProblems(train=jsonl([{"question": "Square it.", **row}])).load("train")
    right, wrong = (Completion(f"```python\n{code}\n```", (1,), "stop") for code in (program, "def f(*_): return 7"))
    assert CodeTests()(right, sample) == RewardResult(1.0, True, "ok", f"{sample.answer} passed")
    assert CodeTests()(wrong, sample).correct is False
    assert ("def f(" in sample.prompt) == ("def f(" in program), "a function that tests call is named in the prompt"


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ('{"a": 1}', "tests: a dict without lists of inputs and outputs; the known forms are a list of"),
        ('{"inputs": [', "tests: in no known form; the known forms are"),
        ({"inputs": ["1", "2"], "outputs": ["1"]}, "tests: 2 inputs and 1 outputs"),
        (
            ["assert math.isclose(f(2), 4.0)"],
            r"tests: `assert math.isclose\(f\(2\), 4.0\)` cannot be read; write it as",
        ),
        (["assert f(2) == 4", "assert g(2) == 4"], r"tests: tests of several functions \(f, g\)"),
        (["assert f(2) =="], "tests: assert statements that are no Python"),
        (["assert f(2) == {4}"], "cannot be read"),
        ([1, 2], "tests: in no known form"),
    ],
)
def test_tests_in_no_known_form_are_refused(jsonl: Any, tests: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"train.jsonl:1: {said}" if said != "cannot be read" else said):
        CodeProblems(train=jsonl([{"question": "q", "tests": tests}])).load("train")
    with pytest.raises(UserError, match="they call g, not f"):
        CodeProblems(train=jsonl([{"question": "q", "tests": ["assert g(2) == 4"], "function": "f"}])).load("train")
