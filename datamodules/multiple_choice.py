"""Text multiple-choice questions: MMLU's layout, or any other through a column mapping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.reading.rows import BadRow, as_text, find_letter, format_options, lookup, map_columns
from lit_rlvr.types import Sample

MMLU_COLUMNS = (("prompt", "question"), ("options", "choices"), ("category", "subject"))
"""(field, column of MMLU); its `answer` has the field's own name."""

MAX_OPTIONS = 10
"""Largest number of options; the reward `Choice` knows the letters A to J."""


class MultipleChoice(PromptDataModule):
    """Questions with options: MMLU in the layout of `cais/mmlu`, or any other set with `columns`.

    The prompt is the question followed by the options, "A) first"; the answer is the letter of the right one, which
    the reward `Choice` judges; the category is the subject.

    Args:
        columns: which column holds `prompt` (the question), `options` (a list), `answer` (an integer, counted from 0,
            or the letter or the text of an option), `id`, `category` and `image`. For omitted fields, MMLU's column
            names (`question`, `choices`, `answer`, `subject`) are tried, then the field's own name.
    """

    def __init__(self, columns: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(columns=columns, **kwargs)

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        columns = {field: column for field, column in MMLU_COLUMNS if column in row} | (self.columns or {})
        sample = map_columns(row, columns, f"{self.name}:{index + 1}", source)
        if not isinstance(sample.prompt, str):
            raise BadRow("expected text, got messages", "prompt")
        if not 2 <= len(sample.options) <= MAX_OPTIONS:
            raise BadRow(f"expected 2 to {MAX_OPTIONS} options, found {len(sample.options)}", "options")
        answer = lookup(row, columns.get("answer", "answer"))
        if not self.columns and str(answer).isdecimal():  # a CSV file's number
            answer = int(answer)
        prompt = f"{sample.prompt}\n{format_options(sample.options)}"
        return replace(sample, prompt=prompt, answer=right_letter(answer, sample.options))


def right_letter(answer: Any, options: Sequence[str]) -> str:
    """Return the letter of the right option; the answer is its number from 0, its letter or its text.

    Raises:
        BadRow: it names none of them.
    """
    if isinstance(answer, int | float):
        if answer not in range(len(options)):
            raise BadRow(f"{answer!r} is not the number of one of {len(options)} options", "answer")
        return ascii_uppercase[int(answer)]
    text = as_text(answer, "answer").strip()
    letter = text if text in list(ascii_uppercase[: len(options)]) else find_letter(text, options)
    if letter is None:
        raise BadRow(f"{text!r} is neither the letter nor the text of one of {len(options)} options", "answer")
    return letter
