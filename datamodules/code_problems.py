"""Programming problems with tests: LiveCodeBench's layout, or any other through a column mapping."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from lit_rlvr.datamodules.base import PromptDataModule, Split
from lit_rlvr.datamodules.reading.rows import BadRow, as_text, lookup
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.code import check_call_tests, read_tests
from lit_rlvr.types import Sample

LIVECODEBENCH_COLUMNS = (
    ("prompt", "question_content"), ("starter_code", "starter_code"), ("function", "metadata.func_name"),
    ("public_tests", "public_test_cases"), ("tests", "private_test_cases"), ("date", "contest_date"),
    ("id", "question_id"), ("category", "difficulty"),
)  # fmt: skip
"""(field, column of LiveCodeBench)."""

# LiveCodeBench's wording, with which its published scores were measured
SCRIPT_FORM = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows."
)
FUNCTION = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
PROBLEM_PROMPT = (
    "### Question:\n{question}\n\n### Format: {form}\n```python\n{code}\n```\n\n"
    "### Answer: (use the provided format with backticks)\n\n"
)


class CodeProblems(PromptDataModule):
    """LiveCodeBench, or any set of programming problems with tests, which the reward `CodeTests` runs.

    The prompt is LiveCodeBench's: the question and the form of the answer, which is a function to complete if there is
    starter code, or else a program that reads standard input. Use it with the system prompt `livecodebench`. The
    category is the difficulty. A row whose tests cannot be read is a bad row. A test is {"input", "output"}: standard
    input and output, or the arguments of a call, one line of JSON each, and its return value.

    Args:
        columns: which column holds `prompt` (the question), `starter_code`, `function` (the name of the function or
            method that tests call; without one, tests run the program), `tests` and `public_tests` (both are run, the
            public ones first; lists, JSON, or packed the way LiveCodeBench packs them), `date`, `id` and `category`.
            For omitted fields, LiveCodeBench's column names are tried, then the field's own name.
        since: leave out problems of contests before this date, such as 2024-08-01.
        until: leave out problems of contests after this date.
    """

    fields: Sequence[str] = tuple(field for field, _ in LIVECODEBENCH_COLUMNS)

    def __init__(
        self,
        columns: dict[str, str] | None = None,
        since: str | None = None,
        until: str | None = None,
        max_prompt_tokens: int = 4096,
        **kwargs: Any,
    ) -> None:
        super().__init__(columns=columns, max_prompt_tokens=max_prompt_tokens, answers="any", **kwargs)
        self.since, self.until = _day("since", since), _day("until", until)
        if self.since and self.until and self.since > self.until:
            raise UserError(f"since={since} is after until={until}: no day is left")

    def rows(self, split: Split) -> Iterator[Sample | BadRow]:
        """Yield the problems between `since` and `until`, with the number of their tests as the answer."""
        for row in super().rows(split):
            if isinstance(row, BadRow):
                yield row
            elif self._is_in_period(row.row["date"]):
                yield _with_test_count(row)

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        if isinstance(row.get("metadata"), str):
            row = {**row, "metadata": _parsed(row["metadata"], "metadata")}
        known = {field: column for field, column in LIVECODEBENCH_COLUMNS if column.partition(".")[0] in row}
        columns = known | (self.columns or {})
        cells = {field: lookup(row, columns.get(field, field)) for field in self.fields}
        starter, question = cells["starter_code"] or "", as_text(cells["prompt"], "prompt")
        form, code = (FUNCTION, starter) if starter else (SCRIPT_FORM, "# YOUR CODE HERE")
        return Sample(
            id=f"{self.name}:{index + 1}" if cells["id"] is None else as_text(cells["id"], "id"),
            prompt=PROBLEM_PROMPT.format(question=question, form=form, code=code),
            answer="",
            row={
                **row,
                "tests": tuple(_as_json(cells[field]) for field in ("public_tests", "tests") if cells[field]),
                "function": cells["function"] or "",
                "date": self._date(cells["date"]),
            },
            category=str(cells["category"] or ""),
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


def _with_test_count(sample: Sample) -> Sample | BadRow:
    """Return the sample with the number of its tests as the answer, or a bad row that says why they cannot be used."""
    try:
        tests = [test for cell in sample.row["tests"] for test in read_tests(cell)]
        if sample.row["function"]:
            check_call_tests(tests)
    except ValueError as error:
        return BadRow(str(error), "tests", sample.source)
    return replace(sample, answer=f"{len(tests)} tests") if tests else BadRow("there are none", "tests", sample.source)


def _as_json(cell: Any) -> str:
    return cell if isinstance(cell, str) else json.dumps(cell)


def _parsed(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"broken JSON ({error})", field) from error


def _day(option: str, text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{option}: {text!r} is not a date, write it like 2024-08-01") from error
