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
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.errors import UserError

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


@pytest.mark.parametrize(
    "answer,letter",
    [(0, "A"), (3, "D"), (1.0, "B"), ("C", "C"), (" D ", "D"), ("2", "C"), ("four", "D"), ("Two ", "B")],
)
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
        MMLU | {"question": [{"role": "assistant", "content": "Which?"}]},
        {key: value for key, value in MMLU.items() if key != "answer"},
    ]
    path = jsonl([MMLU, *bad])
    data = MultipleChoice(train=path, reading=ReadingOptions(max_bad_rows=1.0))
    assert len(data.load("train")) == 1
    reasons = [str(row).removeprefix(f"{path}:") for row in data.bad_rows["train"]]
    assert reasons == [
        "2: answer: 4 is neither the letter, the text nor the number, from 0, of one of 4 options",
        "3: answer: -1 is neither the letter, the text nor the number, from 0, of one of 4 options",
        "4: answer: 'E' is neither the letter, the text nor the number, from 0, of one of 4 options",
        "5: answer: 'AB' is neither the letter, the text nor the number, from 0, of one of 4 options",
        "6: answer: 'five' is neither the letter, the text nor the number, from 0, of one of 4 options",
        "7: answer: missing",
        "8: options: expected 2 to 10 options, found 1",
        "9: options: expected 2 to 10 options, found 11",
        "10: options: expected 2 to 10 options, found 0",
        "11: prompt: empty",
        "12: prompt: no user message with content",
        "13: answer: no column 'answer'; the columns are question, subject, choices",
    ]
    with pytest.raises(UserError, match="12 of 13 rows cannot be used"):
        MultipleChoice(train=path).load("train")


def test_the_options_of_a_conversation_follow_the_last_question(jsonl: Any) -> None:
    turns = [("user", "Hi."), ("assistant", "Ask."), ("user", "Which {prompt}?"), ("assistant", "B")]
    chat = [{"role": role, "content": text} for role, text in turns]
    (sample,) = MultipleChoice(train=jsonl([MMLU | {"question": chat}])).load("train")
    options = "\n".join(f"{letter}) {text}" for letter, text in zip("ABCD", MMLU["choices"], strict=True))
    assert sample.prompt == [*chat[:2], {"role": "user", "content": f"Which {{prompt}}?\n{options}"}]


@pytest.mark.parametrize(
    "row",
    [
        {"options": {"A": "x", "B": "y"}},
        {"options": {"b": "y", "a": "x", "c": None}},
        {"options": '{"A": "x", "B": "y"}'},
        {"options": "{'A': 'x', 'B': 'y'}"},
        {"A": "x", "B": "y", "C": None, "D": ""},
        {"option_a": "x", "option_b": "y"},
        {"Choice A": "x", "Choice B": "y", "opinion": "z"},
        {"opa": "x", "opb": "y"},
        {"choices": ["x", "y", None, None]},
        {"choices": {"text": ["x", "y"], "label": ["A", "B"]}},
        {"choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]},
        {"choices": [{"key": "A", "content": "x"}, {"key": "B", "content": "y"}]},
        {"choices": [{"A": "x"}, {"B": "y"}]},
        {"choices": "['x' 'y']"},
        {"options": ["A. x", "B. y"]},
        {"options": ["(A) x", "(B) y"]},
        {"options": ["a) x", "b) y"]},
        {"options": ["A\uff0ex", "B\uff0ey"]},
        {"options": "A) x\nB) y"},
    ],
)
@pytest.mark.parametrize(
    "answer", ["B", "b", "(B)", "B) y", "(b) Y", "B.", "Option B", "\\boxed{B}", "\uff22", "y", ["B"]]
)
def test_options_and_answers_are_read_in_every_published_form(jsonl: Any, row: dict[str, Any], answer: Any) -> None:
    (sample,) = MultipleChoice(train=jsonl([{"question": "q", "answer": answer, **row}])).load("train")
    assert (sample.prompt, sample.answer, sample.options) == ("q\nA) x\nB) y", "B", ("x", "y"))


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"choices": ["2", "1", "3"], "answer": "2"}, "A"),  # an option's text before a number
        ({"choices": ["2", "1", "3"], "answer": 2}, "C"),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "B"),
        ({"option1": "x", "option2": "y", "answer": "2"}, "B"),
        ({"ending0": "x", "ending1": "y", "answer": 1}, "B"),
        ({"options": ["1. x", "2. y"], "answer": 1}, "A"),
        ({"choices": [1.5, 2.0], "answer": "2"}, "B"),
        ({"choices": ["False", "True"], "answer": False}, "A"),
        ({"choices": ["yes", "no"], "answer": False}, "B"),
        ({"choices": ["E. coli", "B. cereus"], "answer": "B. cereus"}, "B"),
        ({"choices": ["half \u00bd", "x\u00b2"], "answer": "x\u00b2"}, "B"),
    ],
)
def test_numbers_labels_and_texts_are_told_apart(jsonl: Any, row: dict[str, Any], answer: str) -> None:
    (sample,) = MultipleChoice(train=jsonl([{"question": "q", **row}])).load("train")
    assert sample.answer == answer


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": ["B", "A"], "answer": "B"}, "'B' may be two options; write 'A) B' or 'B) A'"),
        (
            {"choices": ["x", "y"], "answer": "B) x"},
            "'B) x' is neither the letter, the text nor the number, from 0, of one of 2",
        ),
        ({"choices": ["x", "y"], "answer": ["A", "B"]}, "A, B are all right, but one option must be"),
        ({"choices": ["x", "y"], "answer": 2}, "2 is neither the letter, the text nor the number"),
        ({"choices": ["x", "y"], "answer": True}, "True is neither the letter, the text nor"),
        ({"choices": ["x", None, "y"], "answer": "A"}, "option B is missing, but a later one is not"),
        ({"choices": [["x"], ["y"]], "answer": "A"}, "an option is no text; the known forms are a list of texts"),
        ({"options": "x or y", "answer": "A"}, "text in no known form; the known forms are a list of texts"),
        ({"options": {"A": "x", "C": "y"}, "answer": "A"}, "the names A, C are no letters from A or numbers"),
    ],
)
def test_what_names_no_option_is_refused(jsonl: Any, row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        MultipleChoice(train=jsonl([{"question": "q", **row}])).load("train")
    assert said in str(error.value) and "train.jsonl:1: " in str(error.value)


def test_a_number_that_is_also_a_text_is_refused_in_a_file_without_types(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("question,A,B,C,answer\nq,2,1,3,2\n")
    with pytest.raises(UserError, match=r"'2' may be two options; write 'A\) 2' or 'C\) 3'"):
        MultipleChoice(train=str(path)).load("train")
    path.write_text("question,A,B,C,answer\nq,x,y,z,2\n")
    assert MultipleChoice(train=str(path)).load("train")[0].answer == "C"
