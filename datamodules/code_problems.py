"""Programming problems with tests: LiveCodeBench's layout, or any other through a column mapping."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from string import ascii_lowercase
from typing import Any

from lit_rlvr.common.columns import lookup, parse_text
from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.reading.cells import BadRow, as_text, is_blank
from lit_rlvr.datamodules.reading.chat import wrapped_prompt
from lit_rlvr.datamodules.reading.code_tests import as_tests
from lit_rlvr.datamodules.reading.conversations import sharegpt_to_messages
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.datamodules.reading.rows import as_prompt
from lit_rlvr.datamodules.reading.split import Split
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.code import check_call_tests, read_tests
from lit_rlvr.types import Sample

LIVECODEBENCH_COLUMNS = (
    ("prompt", "question_content"),
    ("starter_code", "starter_code"),
    ("function", "metadata.func_name"),
    ("public_tests", "public_test_cases"),
    ("tests", "private_test_cases"),
    ("date", "contest_date"),
    ("id", "question_id"),
    ("category", "difficulty"),
)
"""(field, column of LiveCodeBench)."""

OTHER_COLUMNS = (
    ("prompt", "question"),
    ("prompt", "text"),
    ("tests", "input_output"),
    ("tests", "test_list"),
    ("tests", "test"),
    ("function", "entry_point"),
    ("id", "problem_id"),
    ("id", "task_id"),
)
"""(field, column of APPS, MBPP or HumanEval)."""

# LiveCodeBench's wording, with which its published scores were measured
SCRIPT_FORM = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows."
)
FUNCTION = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
CHECKED_AS = ("candidate",)
"""The names of the function in HumanEval's tests."""

PROBLEM_PROMPT = (
    "### Question:\n{prompt}\n\n### Format: {form}\n```python\n{code}\n```\n\n"
    "### Answer: (use the provided format with backticks)\n\n"
)


class CodeProblems(PromptDataModule):
    """LiveCodeBench, or any set of programming problems with tests, which the reward `CodeTests` runs.

    The prompt is LiveCodeBench's: the question and the form of the answer, which is a function to complete if there is
    starter code, or else a program that reads standard input. Use it with the system prompt `livecodebench`. The
    category is the difficulty. A row whose tests cannot be read is a bad row. Tests are

    - a list of {"input", "output"}: standard input and output, or the arguments of a call, one line of JSON each, and
      its return value;
    - {"inputs": [...], "outputs": [...]} of APPS and TACO, where "fn_name" names the function that tests call;
    - assert statements that compare a call with a literal, such as MBPP's, or in HumanEval's function `check`.

    Args:
        columns: which column holds `prompt` (the question), `starter_code`, `function` (the name of the function or
            method that tests call; without one, tests run the program), `tests` and `public_tests` (both are run, the
            public ones first; lists, JSON, or packed the way LiveCodeBench packs them), `date`, `id` and `category`.
            For omitted fields, LiveCodeBench's column names are tried, then the field's own name, then the names of
            APPS, MBPP and HumanEval.
        since: leave out problems of contests before this date, such as 2024-08-01.
        until: leave out problems of contests after this date.
        reading: which rows are used, and how; prompts of up to 4,096 tokens by default.
    """

    fields: Sequence[str] = tuple(field for field, _ in LIVECODEBENCH_COLUMNS)
    has_answer_lists = False

    def __init__(
        self,
        columns: dict[str, str] | None = None,
        since: str | None = None,
        until: str | None = None,
        reading: ReadingOptions = ReadingOptions(max_prompt_tokens=4096),  # noqa: B008
        **kwargs: Any,
    ) -> None:
        super().__init__(columns=columns, reading=reading, **kwargs)
        self.since = _day("since", since)
        self.until = _day("until", until)

    def rows(self, split: Split) -> Iterator[Sample | BadRow]:
        """Yield the problems between `since` and `until`, with their tests and the whole prompt."""
        for row in super().rows(split):
            if isinstance(row, BadRow):
                yield row
            elif self._is_in_period(row.row["date"]):
                yield _with_tests(row)

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        if isinstance(row.get("metadata"), str):
            row = {**row, "metadata": _parsed(row["metadata"], "metadata")}
        tried = (
            *OTHER_COLUMNS,
            *((field, field) for field in self.fields),
            *LIVECODEBENCH_COLUMNS,
        )  # the last one wins
        columns_there = {}
        for field, column in tried:
            if column.partition(".")[0] in row:
                columns_there[field] = column
        columns = columns_there | (self.columns or {})
        cells = {}
        for field in self.fields:
            cells[field] = lookup(row, columns.get(field, field))
        tests = []
        for field in ("public_tests", "tests"):
            if not is_blank(cells[field]):
                tests.append(cells[field])
        return Sample(
            id=f"{self.name}:{index + 1}" if cells["id"] is None else as_text(cells["id"], "id"),
            prompt=as_prompt(sharegpt_to_messages(cells["prompt"], row.get("system"))),
            answer="",
            row={
                **row,
                "tests": tuple(tests),
                "function": cells["function"] or "",
                "starter_code": cells["starter_code"] or "",
                "date": self._date(cells["date"]),
            },
            category="" if cells["category"] is None else str(cells["category"]),
            source=source,
        )

    def _date(self, cell: Any) -> date | None:
        """Return the date of a contest; None if neither `since` nor `until` is set."""
        if not (self.since or self.until):
            return None
        try:
            return date.fromisoformat(as_text(str(cell or ""), "date")[:10])
        except ValueError as error:
            raise BadRow(f"{cell!r} is not a date ({error})", "date") from error

    def _is_in_period(self, day: date | None) -> bool:
        return day is None or (self.since or day) <= day <= (self.until or day)


def _with_tests(sample: Sample) -> Sample | BadRow:
    """Return the sample with its tests, their number as the answer, and the prompt, or a bad row that says why not."""
    function = sample.row["function"]
    starter = sample.row["starter_code"]
    try:
        read = []
        for cell in sample.row["tests"]:
            read.append(as_tests(cell, starter))
        named = sorted({name for _, name in read} - {"", *CHECKED_AS} - {function})
        if named and (function or len(named) > 1):
            raise BadRow(f"they call {' and '.join(named)}, not {function or 'one function'}", "tests")
        function = function or "".join(named)
        tests = []
        for cell, _ in read:
            tests.extend(read_tests(cell))
        if function:
            check_call_tests(tests)
    except ValueError as error:
        return BadRow(str(error), "tests", sample.source)
    except BadRow as error:
        error.source = sample.source
        return error
    if not tests:
        return BadRow("there are none", "tests", sample.source)
    if function and not starter:
        count = sum(map(bool, map(str.strip, tests[0].input.split("\n"))))
        starter = f"def {function}({', '.join(ascii_lowercase[:count])}):\n    "
    form, code = (FUNCTION, starter) if starter else (SCRIPT_FORM, "# YOUR CODE HERE")
    return replace(
        sample,
        prompt=wrapped_prompt(sample.prompt, PROBLEM_PROMPT, form=form, code=code),
        answer=f"{len(tests)} tests",
        row={**sample.row, "tests": tuple(cell for cell, _ in read), "function": function},
    )


def _parsed(text: str, field: str) -> Any:
    """Return the value of JSON, or the list or dict of a Python literal."""
    try:
        value = parse_text(text)
        if isinstance(value, str):
            return json.loads(text)
        return value
    except (ValueError, RecursionError) as error:
        raise BadRow(f"broken JSON ({error})", field) from error


def _day(option: str, text: str | None) -> date | None:
    try:
        if text is None:
            return None
        return date.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{option}: {text!r} is not a date, write it like 2024-08-01") from error
