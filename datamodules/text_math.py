"""Text mathematics, read in the layouts that the data sets are published in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_rlvr.answers.find import last_boxed
from lit_rlvr.common.columns import lookup, parse_text
from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.reading.cells import BadRow, as_text
from lit_rlvr.datamodules.reading.conversations import sharegpt_to_messages
from lit_rlvr.datamodules.reading.images import check_media
from lit_rlvr.datamodules.reading.rows import FALLBACKS, DataRow, as_prompt, closing_answer, find_cell
from lit_rlvr.types import Sample

TEMPLATED = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|<\|user\|>|\[INST\]")
"""Chat template markup, which some data sets' prompts already contain."""


def with_references(sample: Sample) -> Sample:
    """Return the sample with the `reference_answer` of each of its references."""
    answer, *aliases = dict.fromkeys(map(reference_answer, sample.references))
    return replace(sample, answer=answer, aliases=tuple(aliases))


def read_verl(row: DataRow) -> tuple[Any, Any]:
    """Read `prompt` messages and `reward_model.ground_truth`: text, {target, solution}, or Search-R1's {target: [...]}.

    The solution's box takes precedence over the target: in the MATH files in circulation, a normaliser broke the
    targets that hold matrices (`\\\\` became `\\`) or \\text, and emptied some.
    """
    truth = lookup(row, "reward_model.ground_truth")
    fields = parse_text(truth)
    if isinstance(fields, Mapping) and isinstance(fields.get("solution"), str):
        truth = last_boxed(fields["solution"]) or fields.get("target")
    if truth is None:
        raise BadRow("missing", "reward_model.ground_truth")
    return bare_prompt(row), truth


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


def read_trl(row: DataRow) -> tuple[Any, Any]:
    """Read TRL's `prompt`, text or messages, and its `answer` or `solution`.

    Raises:
        BadRow: it has neither.
    """
    answer = find_cell(row, ("answer", "solution"))
    if answer is None:
        raise BadRow("missing", "solution")
    return bare_prompt(row), answer


def read_conversation(row: DataRow) -> tuple[Any, Any]:
    """Read `conversations` or `messages`, and the answer that a column gives; None if none does."""
    messages = sharegpt_to_messages(find_cell(row, FALLBACKS["prompt"]), row.get("system"))
    return messages, find_cell(row, ("answer", *FALLBACKS["answer"]))


def read_svamp(row: DataRow) -> tuple[Any, str]:
    """Read `Body` and `Question`; add a full stop between them if the body lacks one."""
    body = as_text(row["Body"], "Body").strip()
    body += "" if body[-1] in ".!?,;:" else "."
    return f"{body} {as_text(row['Question'], 'Question').strip()}", as_text(row["Answer"], "Answer")


def read_answer(row: DataRow) -> tuple[Any, Any]:
    """Read `problem` or `question`, and `answer` (GSM8K: what follows `####`)."""
    return row["problem"] if "problem" in row else row.get("question"), row.get("answer")


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
    answers = []
    for answer in row["final_answer"]:
        answers.append(as_text(answer, "final_answer").strip("$ "))
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
    ({"conversations"}, read_conversation),
    ({"messages"}, read_conversation),
)
"""(columns that a layout needs, its reader); the first layout that fits applies."""


ANSWER_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
THOUSANDS = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")


def reference_answer(text: str) -> str:
    """Return the reference answer in a text: what follows the last `####`; else the last box; else the whole text.

    In a text with <answer> tags, only the content of the last ones is looked at. What follows `####` ends with its
    line, and loses the commas between thousands.

    Raises:
        BadRow: nothing follows the mark.
    """
    text = next(reversed(ANSWER_TAGS.findall(text)), text).strip()
    _, mark, marked = text.rpartition("####")
    answer = last_boxed(marked if mark else text)
    if answer is None:
        if mark:
            answer = without_thousands(_first_line(marked))
        else:
            answer = text
    if not answer:
        raise BadRow("empty", "answer")
    return answer


def _first_line(text: str) -> str:
    """Return the first line of a text, or the whole text if it begins a LaTeX environment."""
    text = text.strip()
    if "\\begin" in text:
        return text
    return text.partition("\n")[0].strip()


def without_thousands(text: str) -> str:
    """Return the text without the commas of "1,234" and "1,234,567", unless other commas or brackets make it a list."""
    without = THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    if re.search(r"[,()\[\]{}]", without):
        return text
    return without


class TextMath(PromptDataModule):
    """Problems with a final answer, such as GSM8K, MATH, SVAMP and OlympiadBench.

    The known layouts are GSM8K, MATH, MATH-500, SVAMP, math12k, SimpleRL, open-rs, TRL's and verl's columns, and
    OlympiadBench. Each file's layout is recognised by the columns of the first row that fits a known one; for any other
    file give `columns`. An answer column may then hold a whole solution: the reference is what follows `####`, else the
    last `\\boxed{...}`, else the whole text. Any answer of a list is right, unless `answers` is `all`; OlympiadBench's
    final answers are all required.
    """

    layouts = MATH_LAYOUTS

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        sample = super().sample(row, index, source)
        if sample.answer:
            return with_references(sample)
        return sample

    def read_layout(self, row: DataRow, source: str) -> dict[str, Any]:
        question, answer = super().read_layout(row, source)
        check_media(row, ())
        prompt = as_prompt(question)
        row_id = find_cell(row, ("id", "ID", "unique_id"))
        return {
            "prompt": prompt,
            "answer": closing_answer(row, prompt, source) if answer is None else answer,
            "category": str(find_cell(row, ("subject", "type", "Type", "data_source"), "")),
            **({} if row_id is None else {"id": as_text(row_id, "id")}),
        }
