"""Text mathematics: the layouts its data sets are published in, read as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from datamodules.base import PromptDataModule
from datamodules.rows import BadRow, as_prompt, as_text, lookup
from lit_rlvr.types import Sample

Row = Mapping[str, Any]
Read = Callable[[Row], tuple[Any, str]]

TEMPLATED = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|<\|user\|>|\[INST\]")
"""Markup of a chat template inside a data set's own prompts."""

BOXED = re.compile(r"\\(?:f?boxed|fbox)\s*(?=\{)|\\boxed\s+([^\s${}]+)")


class TextMath(PromptDataModule):
    """Problems with a final answer: GSM8K, MATH, MATH-500, SVAMP, math12k, SimpleRL, open-rs, verl parquet.

    The layout is recognised by the columns of each file's first row that has a known one; for any
    other file give `columns`. An answer column may then hold a whole solution: the reference is
    what follows `####`, else the last `\\boxed{...}`, else all of it.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._layouts: dict[str, Read] = {}

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        if self.columns:
            sample = super().sample(row, index, source)
            return replace(sample, answer=reference(sample.answer))
        file = source.rpartition(":")[0]
        read = self._layouts.get(file) or detect(row)
        if read is None:
            raise BadRow(f"no known layout, the columns are {', '.join(row)}; map them with `columns`", "columns")
        self._layouts[file] = read
        prompt, answer = read(row)
        row_id = next((row[key] for key in ("id", "ID", "unique_id") if row.get(key) is not None), None)
        category = next((row[key] for key in ("subject", "type", "Type") if row.get(key) is not None), "")
        return Sample(
            id=f"{self.name}:{index + 1}" if row_id is None else as_text(row_id, "id"),
            prompt=as_prompt(prompt),
            answer=answer,
            row=row,
            category=str(category),
            source=source,
        )


def detect(row: Row) -> Read | None:
    """How to read a row with these columns; None where the layout is not known."""
    for columns, read in LAYOUTS:
        if columns <= row.keys():
            return read
    return None


def read_verl(row: Row) -> tuple[Any, str]:
    """`prompt` messages and `reward_model.ground_truth`: text, or {target, solution}.

    The solution's box comes before the target: in the MATH files that circulate, a normaliser broke
    all matrices (`\\\\` became `\\`), \\text answers and more in the targets, and emptied some.
    """
    truth = lookup(row, "reward_model.ground_truth")
    if isinstance(truth, Mapping):
        truth = last_boxed(truth.get("solution") or "") or truth.get("target")
    prompt: Any = as_prompt(row["prompt"])
    if TEMPLATED.search(prompt if isinstance(prompt, str) else "".join(str(m["content"]) for m in prompt)):
        prompt = row.get("question")
        if prompt is None:
            raise BadRow("has a chat template applied already; map the bare question with `columns`", "prompt")
    return prompt, reference(as_text(truth, "reward_model.ground_truth"))


def read_svamp(row: Row) -> tuple[Any, str]:
    """`Body` and `Question`; a body without a full stop gets one before the question."""
    body = as_text(row["Body"], "Body").strip()
    body += "" if body[-1] in ".!?,;:" else "."
    return f"{body} {as_text(row['Question'], 'Question').strip()}", as_text(row["Answer"], "Answer")


def read_answer(row: Row) -> tuple[Any, str]:
    """`problem` or `question`, and `answer` (GSM8K: what follows `####`)."""
    return row["problem"] if "problem" in row else row.get("question"), reference(as_text(row.get("answer"), "answer"))


def read_solution(row: Row) -> tuple[Any, str]:
    """`problem` or `question`, and a worked `solution` whose last box is the answer."""
    answer = last_boxed(as_text(row.get("solution"), "solution"))
    if not answer:
        raise BadRow("no \\boxed answer", "solution")
    return row["problem"] if "problem" in row else row.get("question"), answer


LAYOUTS: tuple[tuple[set[str], Read], ...] = (
    ({"prompt", "reward_model"}, read_verl),
    ({"Body", "Question", "Answer"}, read_svamp),
    ({"problem", "answer"}, read_answer),
    ({"question", "answer"}, read_answer),
    ({"problem", "solution"}, read_solution),
    ({"question", "solution"}, read_solution),
)
"""Columns a layout needs -> how it is read; the first that fits is taken."""


def reference(text: str) -> str:
    """The reference answer in a text: after the last `####` without commas, else the last box, else all.

    Raises:
        BadRow: nothing follows the mark.
    """
    if "####" in text:
        answer = text.rpartition("####")[2].replace(",", "").strip()
    else:
        boxed = last_boxed(text)
        answer = text.strip() if boxed is None else boxed
    if not answer:
        raise BadRow("empty", "answer")
    return answer


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{...}` (or `\\fbox{...}`, `\\boxed 5`) holds; None without one, or if it never ends."""
    matches = list(BOXED.finditer(text))
    if not matches:
        return None
    if matches[-1][1]:
        return matches[-1][1]
    start, depth, escaped = matches[-1].end(), 0, False
    for i in range(start, len(text)):
        if escaped:
            escaped = False
        elif text[i] == "\\":
            escaped = True
        elif text[i] in "{}":
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return text[start + 1 : i].strip()
    return None
