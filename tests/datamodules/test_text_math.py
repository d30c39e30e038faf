"""TextMath on every layout, on inline rows always and on the real files where they are."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_rlvr.answers.find import last_boxed
from lit_rlvr.datamodules import TextMath
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.datamodules.text_math import reference_answer
from lit_rlvr.errors import UserError

VERL = {
    "level": "Level 5",
    "type": "Algebra",
    "prompt": [{"content": "Find $a$.", "role": "user"}],
    "reward_model": {
        "ground_truth": {"question": "Find $a$.", "solution": "so \\boxed{\\text{Friday}}", "target": "{Friday}"},
        "style": "rule",
    },
}
SIMPLERL = {
    "prompt": [{"role": "user", "content": "<|im_start|>user\nFind b<|im_end|>\n<|im_start|>assistant\n"}],
    "reward_model": {"ground_truth": "7", "style": "rule"},
    "question": "Find b",
    "subject": "Geometry",
}
LAYOUTS = [
    (
        {"prompt": [{"role": "user", "content": "1+1?"}], "solution": "$2$"},
        [{"role": "user", "content": "1+1?"}],
        "$2$",
        "",
    ),
    ({"prompt": "1+1?", "solution": "so \\boxed{2}", "answer": None}, "1+1?", "2", ""),
    ({"prompt": "1+1?", "answer": 2, "solution": "worked out"}, "1+1?", "2", ""),
    (
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": "1+1?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "extra_info": {"index": 0, "split": "train"},
        },
        [{"role": "user", "content": "1+1?"}],
        "2",
        "openai/gsm8k",
    ),
    ({"question": "How many?", "answer": "so 1+1\n#### 1,234"}, "How many?", "1234", ""),
    ({"question": "How many?", "answer": "42", "subject": None, "type": 0}, "How many?", "42", "0"),
    (
        {
            "problem": "p?",
            "level": "Level 1",
            "type": "Algebra",
            "solution": "\\boxed{3}, no: $\\boxed{\\frac{1}{2}}$.",
        },
        "p?",
        "\\frac{1}{2}",
        "Algebra",
    ),
    (
        {
            "problem": "p?",
            "solution": "\\boxed{9}",
            "answer": "(3, \\frac{\\pi}{2})",
            "subject": "Precalculus",
            "level": 2,
        },
        "p?",
        "(3, \\frac{\\pi}{2})",
        "Precalculus",
    ),
    (
        {
            "Body": "There are 290 bananas in 2 groups",
            "Question": "How big is each?",
            "Answer": 145.0,
            "Type": "Division",
        },
        "There are 290 bananas in 2 groups. How big is each?",
        "145",
        "Division",
    ),
    ({"problem": "p?", "answer": 27.0}, "p?", "27", ""),
    ({"id": 60, "problem": "p?", "solution": "s", "answer": "073", "url": "u", "year": "2024"}, "p?", "073", ""),
    (
        {
            "id": 1606,
            "context": "Let $n=2$.",
            "question": "Find all $x$.",
            "solution": ["..."],
            "final_answer": ["$\\frac{1}{2}$", "3"],
            "is_multiple_answer": True,
            "unit": None,
            "error": None,
        },
        "Let $n=2$.\nFind all $x$.",
        "\\frac{1}{2}, 3",
        "",
    ),
    (VERL, [{"role": "user", "content": "Find $a$."}], "\\text{Friday}", "Algebra"),
    (SIMPLERL, "Find b", "7", "Geometry"),
]


@pytest.mark.parametrize("row,prompt,answer,category", LAYOUTS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_known_layouts_are_read(tmp_path: Path, row: dict, prompt, answer: str, category: str, suffix: str):
    path = tmp_path / f"train{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    (sample,) = TextMath(train=str(path)).load("train")
    assert (sample.prompt, sample.answer, sample.category) == (prompt, answer, category)
    assert sample.row == row and sample.source == f"{path}:1"
    assert sample.id == (str(row["id"]) if "id" in row else "text_math:1")


def test_the_layout_is_that_of_the_files_first_known_row(jsonl):
    path = jsonl([*({"problem": "p", "answer": "1"} for _ in range(9)), {"problem": "p", "solution": "\\boxed{2}"}])
    data = TextMath(train=path)
    assert len(data.load("train")) == 9
    assert [str(row) for row in data.bad_rows["train"]] == [f"{path}:10: answer: missing"]


def test_files_of_one_set_may_differ_in_layout(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"problem": "p", "answer": "1"}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "q", "answer": "#### 2"}) + "\n")
    assert [s.answer for s in TextMath(train=str(tmp_path)).load("train")] == ["1", "2"]


def test_unknown_columns_are_listed_and_can_be_mapped(jsonl):
    path = jsonl([{"task": "1+1?", "gold": "so #### 2"}])
    with pytest.raises(UserError, match=r"no known layout, the columns are task, gold; map them with `columns`"):
        TextMath(train=path).load("train")
    (sample,) = TextMath(train=path, columns={"prompt": "task", "answer": "gold"}).load("train")
    assert (sample.prompt, sample.answer) == ("1+1?", "2")


def test_a_templated_prompt_without_its_question_is_a_bad_row(jsonl):
    row = {key: value for key, value in SIMPLERL.items() if key != "question"}
    with pytest.raises(UserError, match="prompt: a chat template is already applied"):
        TextMath(train=jsonl([row])).load("train")


@pytest.mark.parametrize(
    "text,boxed",
    [
        ("\\boxed{1} then \\boxed{ {2} }", "{2}"),
        ("$\\boxed{\\left\\{x\\right.}$", "\\left\\{x\\right."),
        ("\\fbox{3}", "3"),
        ("the answer is $\\boxed 5$", "5"),
        ("\\boxed{never ends", None),
        ("no box", None),
        ("\\boxed{}", ""),
        ("\\boxed {4.}", "4"),
        ("\\boxed{1} or \\boxed \\frac{1}{2}", "1"),
    ],
)
def test_the_last_box_is_found(text: str, boxed: str | None):
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    "text,answer",
    [
        ("... #### (3, 4)", "(3, 4)"),
        ("#### 3,5", "3,5"),
        ("#### 3,4,5", "3,4,5"),
        (r"#### \{1,2\}", r"\{1,2\}"),
        ("#### [0, 1)", "[0, 1)"),
        ("#### x, y", "x, y"),
        ("#### 1,234,567", "1234567"),
        ("#### -$1,234.50", "-$1234.50"),
        ("#### 1,234 dollars", "1234 dollars"),
        ("#### 1,234, 5", "1,234, 5"),
        ("#### (1,234)", "(1,234)"),
        ("#### 12,34", "12,34"),
        ("#### 0,125", "0,125"),
        ("#### 5\nThat is all.", "5"),
        ("#### Final Answer\n\\boxed{5}", "5"),
        ("<answer> \\boxed{5} </answer>", "5"),
        ("<think>4?</think> So <answer>5</answer>.", "5"),
    ],
)
def test_commas_marks_and_tags_of_references(text: str, answer: str):
    assert reference_answer(text) == answer


def test_any_of_several_answers_is_right(jsonl):
    lists = [
        {"question": "q", "answer": ["#### 1,000", "\\boxed{10^3}", "1000"]},
        {"prompt": "q", "reward_model": {"ground_truth": {"target": ["1000", "10^3"]}}},
        {"prompt": "q", "reward_model": '{"ground_truth": "[\\"1000\\", \\"10^3\\"]"}'},
        {"conversations": [{"from": "human", "value": "q"}], "answer": ["1000", "10^3"]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "\\boxed{1000}"}]},
    ]
    found = [TextMath(train=jsonl([row], f"{i}.jsonl")).load("train")[0].references for i, row in enumerate(lists)]
    assert found == [("1000", "10^3")] * 4 + [("1000",)]
    mapped = {"q": "?", "meta": '{"gt": "\\\\boxed{4}"}'}
    assert TextMath(train=jsonl([mapped]), columns={"prompt": "q", "answer": "meta.gt"}).load("train")[0].answer == "4"
    (both,) = TextMath(
        train=jsonl([{"question": "q", "answer": ["3", "4"]}]), reading=ReadingOptions(answers="all")
    ).load("train")
    assert both.references == ("3, 4",)


def test_gold_answers_are_read_from_solutions():
    assert reference_answer("a #### b #### 1,000 ") == "1000"
    assert reference_answer(" (1, 2) ") == "(1, 2)"  # commas go only where #### says it is a number
    with pytest.raises(Exception, match="answer: empty"):
        reference_answer("so ####")


def test_the_shipped_slice_is_whole_and_disjoint():
    data = TextMath(train="package:svamp/train.jsonl", validation="package:svamp/validation.jsonl")
    train, validation = data.load("train"), data.load("validation")
    assert (len(train), len(validation)) == (300, 100)
    assert not {s.prompt for s in train} & {s.prompt for s in validation}
    assert not {s.id for s in train} & {s.id for s in validation}
    assert train[0].id == "chal-777" and {s.category for s in train} >= {"Subtraction", "Addition"}
