"""Text mathematics, read in the layouts that the data sets are published in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.reading.images import check_media
from lit_rlvr.datamodules.reading.rows import BadRow, DataRow, Layouts, as_prompt, as_text, lookup
from lit_rlvr.rewards.answers.find import last_boxed
from lit_rlvr.types import Sample

TEMPLATED = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|<\|user\|>|\[INST\]")
"""Chat template markup, which some data sets' prompts already contain."""


class TextMath(PromptDataModule):
    """Problems with a final answer: GSM8K, MATH, MATH-500, SVAMP, math12k, SimpleRL, open-rs, TRL's and
    verl's columns, OlympiadBench.

    Each file's layout is recognised by the columns of the first row that fits a known one; for any other file give
    `columns`. An answer column may then hold a whole solution: the reference is what follows `####`, else the last
    `\\boxed{...}`, else the whole text.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._layouts = Layouts(MATH_LAYOUTS)

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        if self.columns:
            sample = super().sample(row, index, source)
            return replace(sample, answer=reference_answer(sample.answer))
        prompt, answer = self._layouts.read(row, source)
        check_media(row, ())
        row_id = next((row[key] for key in ("id", "ID", "unique_id") if row.get(key) is not None), None)
        category = next(
            (row[key] for key in ("subject", "type", "Type", "data_source") if row.get(key) is not None), ""
        )
        return Sample(
            id=f"{self.name}:{index + 1}" if row_id is None else as_text(row_id, "id"),
            prompt=as_prompt(prompt),
            answer=answer,
            row=row,
            category=str(category),
            source=source,
        )


def read_verl(row: DataRow) -> tuple[Any, str]:
    """Read `prompt` messages and `reward_model.ground_truth`: text, or {target, solution}.

    The solution's box takes precedence over the target: in the MATH files in circulation, a normaliser broke the
    targets that hold matrices (`\\\\` became `\\`) or \\text, and emptied some.
    """
    truth = lookup(row, "reward_model.ground_truth")
    if isinstance(truth, Mapping):
        truth = last_boxed(truth.get("solution") or "") or truth.get("target")
    return bare_prompt(row), reference_answer(as_text(truth, "reward_model.ground_truth"))


def bare_prompt(row: DataRow) -> Any:
    """Return the `prompt` of a row, or its `question` if a chat template is already applied to the prompt.

    Raises:
        BadRow: there is no question either.
    """
    prompt: Any = as_prompt(row["prompt"])
    if TEMPLATED.search(prompt if isinstance(prompt, str) else "".join(str(m["content"]) for m in prompt)):
        prompt = row.get("question")
        if prompt is None:
            raise BadRow("a chat template is already applied; map the bare question with `columns`", "prompt")
    return prompt


def read_trl(row: DataRow) -> tuple[Any, str]:
    """Read TRL's `prompt`, text or messages, and its `answer` or `solution`."""
    field = "answer" if row.get("answer") is not None else "solution"
    return bare_prompt(row), reference_answer(as_text(row.get(field), field))


def read_svamp(row: DataRow) -> tuple[Any, str]:
    """Read `Body` and `Question`; add a full stop between them if the body lacks one."""
    body = as_text(row["Body"], "Body").strip()
    body += "" if body[-1] in ".!?,;:" else "."
    return f"{body} {as_text(row['Question'], 'Question').strip()}", as_text(row["Answer"], "Answer")


def read_answer(row: DataRow) -> tuple[Any, str]:
    """Read `problem` or `question`, and `answer` (GSM8K: what follows `####`)."""
    return row["problem"] if "problem" in row else row.get("question"), reference_answer(
        as_text(row.get("answer"), "answer")
    )


def read_solution(row: DataRow) -> tuple[Any, str]:
    """Read `problem` or `question`, and a worked `solution` whose last box is the answer."""
    answer = last_boxed(as_text(row.get("solution"), "solution"))
    if not answer:
        raise BadRow("no \\boxed answer", "solution")
    return row["problem"] if "problem" in row else row.get("question"), answer


def read_olympiad(row: DataRow) -> tuple[Any, str]:
    """Read OlympiadBench: `question` (after its `context`, if any) and a list of `final_answer`s, all required."""
    context = row.get("context")
    question = as_text(row["question"], "question")
    answers = [as_text(answer, "final_answer").strip("$ ") for answer in row["final_answer"]]
    return f"{context}\n{question}" if context else question, as_text(answers, "final_answer")


def refuse_choices(row: DataRow) -> tuple[Any, str]:
    """Refuse MMLU: it is not mathematics, and the number of a choice would pass for a numeric answer."""
    raise BadRow("a multiple-choice question, which MultipleChoice reads", "choices")


MATH_LAYOUTS = (
    ({"prompt", "reward_model"}, read_verl),
    ({"Body", "Question", "Answer"}, read_svamp),
    ({"question", "final_answer"}, read_olympiad),
    ({"question", "choices", "answer"}, refuse_choices),
    ({"problem", "answer"}, read_answer),
    ({"question", "answer"}, read_answer),
    ({"problem", "solution"}, read_solution),
    ({"question", "solution"}, read_solution),
    ({"prompt", "answer"}, read_trl),
    ({"prompt", "solution"}, read_trl),
)
"""(columns that a layout needs, its reader); the first layout that fits applies."""


def reference_answer(text: str) -> str:
    """Return the reference answer in a text: what follows the last `####`, without commas; else the last box; else all.

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
