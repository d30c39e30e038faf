"""MultipleChoice on MMLU's layout and on mapped columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_rlvr.datamodules import MultipleChoice
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import Choice
from lit_rlvr.types import Completion

MMLU = {"question": "Which is first?", "subject": "anatomy", "choices": ["one", "two", "three", "four"], "answer": 2}
PROMPT = "Which is first?\nA) one\nB) two\nC) three\nD) four"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_mmlu_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"test{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps(MMLU) + "\n")
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([MMLU]), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, MMLU)
            writer.writeheader()
            writer.writerow(MMLU)
    (sample,) = MultipleChoice(train=str(path)).load("train")
    assert (sample.prompt, sample.answer, sample.category) == (PROMPT, "C", "anatomy")
    assert sample.options == ("one", "two", "three", "four")
    assert (sample.id, sample.source) == ("multiple_choice:1", f"{path}:1")


@pytest.mark.parametrize("answer,letter", [(0, "A"), (3, "D"), (1.0, "B"), ("C", "C"), (" D ", "D"), ("2", "C"),
                                           ("four", "D"), ("Two ", "B")])  # fmt: skip
def test_an_answer_is_a_number_a_letter_or_a_text(jsonl: Any, answer: Any, letter: str) -> None:
    (sample,) = MultipleChoice(train=jsonl([MMLU | {"answer": answer}])).load("train")
    assert sample.answer == letter


def test_other_columns_are_mapped(jsonl: Any) -> None:
    """Ten options, and an answer whose text is a number: there a number in words is an option's text."""
    row = {"task": "7 + 1?", "offers": [str(n) for n in range(1, 11)], "gold": "8", "kind": "sums", "key": "q7"}
    columns = {"prompt": "task", "options": "offers", "answer": "gold", "category": "kind", "id": "key"}
    (sample,) = MultipleChoice(train=jsonl([row]), columns=columns).load("train")
    assert sample.prompt.startswith("7 + 1?\nA) 1\nB) 2\n") and sample.prompt.endswith("\nJ) 10")
    assert (sample.id, sample.answer, sample.category) == ("q7", "H", "sums")


def test_bad_rows_are_named(jsonl: Any) -> None:
    bad = [
        MMLU | {"answer": 4},
        MMLU | {"answer": -1},
        MMLU | {"answer": "E"},
        MMLU | {"answer": "AB"},
        MMLU | {"answer": "five"},
        MMLU | {"answer": None},
        MMLU | {"choices": ["one"]},
        MMLU | {"choices": [str(n) for n in range(11)]},
        MMLU | {"choices": None},
        MMLU | {"question": " "},
        MMLU | {"question": [{"role": "user", "content": "Which?"}]},
        {key: value for key, value in MMLU.items() if key != "answer"},
    ]
    path = jsonl([MMLU, *bad])
    data = MultipleChoice(train=path, max_bad_rows=1.0)
    assert len(data.load("train")) == 1
    reasons = [str(row).removeprefix(f"{path}:") for row in data.bad_rows["train"]]
    assert reasons == [
        "2: answer: 4 is not the number of one of 4 options, counted from 0",
        "3: answer: -1 is not the number of one of 4 options, counted from 0",
        "4: answer: 'E' is neither the letter nor the text of one of 4 options",
        "5: answer: 'AB' is neither the letter nor the text of one of 4 options",
        "6: answer: 'five' is neither the letter nor the text of one of 4 options",
        "7: answer: missing",
        "8: options: expected 2 to 10 options, found 1",
        "9: options: expected 2 to 10 options, found 11",
        "10: options: expected 2 to 10 options, found 0",
        "11: prompt: empty",
        "12: prompt: expected text, got messages",
        "13: answer: no column 'answer'; the columns are question, subject, choices",
    ]
    with pytest.raises(UserError, match="12 of 13 rows cannot be used"):
        MultipleChoice(train=path).load("train")


def test_the_reward_judges_letters_and_texts(jsonl: Any) -> None:
    (sample,) = MultipleChoice(train=jsonl([MMLU])).load("train")
    texts = ["The answer is C.", "\\boxed{three}", "(C)", "B", "two", "\\boxed{C) three}", "\\boxed{C) two}"]
    results = [Choice()(Completion(text, (1,), "stop"), sample).correct for text in texts]
    assert results == [True, True, True, False, False, True, False]
