"""Text multiple-choice questions: MMLU's and ARC's layouts, or any other through a column mapping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_rlvr.common.columns import lookup
from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.reading.chat import wrapped_prompt
from lit_rlvr.datamodules.reading.choices import format_options, options_in_columns, read_options, right_letter
from lit_rlvr.datamodules.reading.readers import TEXT_TABLES
from lit_rlvr.datamodules.reading.rows import map_columns
from lit_rlvr.types import Sample

KNOWN_COLUMNS = (("prompt", "question"), ("options", "choices"), ("answer", "answerKey"), ("category", "subject"))
"""(field, column of MMLU and ARC)."""

MAX_OPTIONS = 10
"""Largest number of options; the reward `Choice` knows the letters A to J."""


class MultipleChoice(PromptDataModule):
    """Questions with options: MMLU in the layout of `cais/mmlu`, ARC, or any other set with `columns`.

    The prompt is the question followed by the options, "A) first"; the answer is the letter of the right one, which
    the reward `Choice` judges; the category is the subject. A list of answers must name one option.

    Args:
        columns: which column holds `prompt` (the question), `options` (see below), `answer` (the letter, the text or
            the data's own label of an option, or its number, counted from 0), `id`, `category` and `image`. For
            omitted fields, the column names of MMLU (`question`, `choices`, `answer`, `subject`) and ARC (`answerKey`)
            are tried, then the field's own name. `options` is a list of texts, {"A": ...}, a list of {"label", "text"},
            {"label": [...], "text": [...]}, or JSON text of one of these; without it, options are read from columns
            of their own, such as `A`, `B`, ... or `option_1`, `option_2`, ...
    """

    has_answer_lists = False

    def __init__(self, columns: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(columns=columns, **kwargs)

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        columns_there = {}
        for field, column in KNOWN_COLUMNS:
            if column in row:
                columns_there[field] = column
        columns = columns_there | (self.columns or {})
        value = lookup(row, columns.get("options", "options"))
        if value is None and "options" not in columns:
            options = options_in_columns(row)
        else:
            options = read_options(value)
        sample = map_columns(row, columns, f"{self.name}:{index + 1}", source)
        if not 2 <= len(options.texts) <= MAX_OPTIONS:
            raise BadRow(f"expected 2 to {MAX_OPTIONS} options, found {len(options.texts)}", "options")
        is_typed = not source.rpartition(":")[0].endswith(TEXT_TABLES)
        answer = right_letter(lookup(row, columns.get("answer", "answer")), options, is_typed)
        prompt = wrapped_prompt(sample.prompt, "{prompt}\n{options}", options=format_options(options.texts))
        return replace(sample, prompt=prompt, answer=answer, aliases=(), options=options.texts)
