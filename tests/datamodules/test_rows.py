"""Cells, bad rows, ids."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from decimal import Decimal

import numpy as np
import pytest

from lit_rlvr.common.columns import lookup
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.reading.cells import BadRow, as_answers, as_text
from lit_rlvr.datamodules.reading.checks import require_samples
from lit_rlvr.datamodules.reading.rows import (
    as_prompt,
    filter_rows,
    map_columns,
)
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import FunctionReward
from lit_rlvr.types import Completion, Sample


def sample(number: int, **fields) -> Sample:
    return Sample(**{"id": str(number), "prompt": "q", "answer": "a", "source": f"f.jsonl:{number}", **fields})


@pytest.mark.parametrize(
    "value,text",
    [
        ("073", "073"),
        (145.0, "145"),
        (0, "0"),
        (0.5, "0.5"),
        (np.float64(3), "3"),
        (["1", 2.0], "1, 2"),
        (np.array(["x"]), "x"),
        (" kept ", " kept "),
        (True, "True"),
        (Decimal("12.50"), "12.5"),
        (Decimal("1200.00"), "1200"),
        (date(2024, 5, 1), "2024-05-01"),
        (datetime(2024, 5, 1), "2024-05-01"),
        (datetime(2024, 5, 1, 9, 30), "2024-05-01 09:30:00"),
        (time(9, 30), "09:30:00"),
        (np.datetime64("2024-05-01T00:00:00.000000000"), "2024-05-01"),
    ],
)
def test_cells_become_text(value, text):
    assert as_text(value, "answer") == text


@pytest.mark.parametrize("value", [None, "", "  \n", float("nan"), Decimal("nan"), {"a": 1}, b"x", []])
def test_cells_that_are_no_text(value):
    with pytest.raises(BadRow) as error:
        as_text(value, "answer")
    assert error.value.field == "answer"


def test_prompts_are_text_or_messages():
    message = {"role": "user", "content": "q"}
    assert as_prompt(np.array([message], dtype=object)) == [message] == as_prompt([message])
    assert as_prompt(7) == "7"
    for bad in (
        ["text"],
        [{"role": "user"}],
        [{"role": "user", "content": ""}],
        [{"role": "system", "content": "s"}],
        [],
    ):
        with pytest.raises(BadRow):
            as_prompt(bad)


def test_columns_are_mapped_nested_ones_too():
    row = {"q": "1+1?", "meta": {"gold": 2.0, "topic": "sums"}, "images": ["a.png"], "id": 5}
    columns = {"prompt": "q", "answer": "meta.gold", "category": "meta.topic"}
    assert map_columns(row, columns, "fallback", "f:1") == Sample("5", "1+1?", "2", ("a.png",), row, "sums", "f:1")
    assert map_columns({"prompt": "q", "answer": "a"}, {}, "set:1", "f:1").id == "set:1"
    assert lookup({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    with pytest.raises(BadRow, match=r"no column 'question'; the columns are q, a"):
        map_columns({"q": "x", "a": "y"}, {"prompt": "question"}, "", "")
    with pytest.raises(BadRow, match="no column 'kind'"):
        map_columns({"prompt": "x", "answer": "y"}, {"category": "kind"}, "", "")


def test_columns_of_trl_and_verl_need_no_mapping():
    chat = [{"role": "user", "content": "1+1?"}]
    for rest in ({"solution": "2"}, {"answer": None, "solution": "2"}, {"reward_model": {"ground_truth": 2}}):
        assert map_columns({"prompt": chat, **rest}, {}, "", "").answer == "2"
    found = map_columns({"prompt": chat, "answer": "3", "solution": "2", "data_source": "sums"}, {}, "", "")
    assert (found.prompt, found.answer, found.category) == (chat, "3", "sums")
    with pytest.raises(BadRow, match="no column 'answer'"):
        map_columns({"prompt": chat, "solution": None}, {}, "", "")
    with pytest.raises(BadRow, match="answer"):
        map_columns({"prompt": chat, "gold": None, "solution": "2"}, {"answer": "gold"}, "", "")


def test_bad_rows_up_to_the_limit_are_skipped_counted_and_named(caplog: pytest.LogCaptureFixture):
    rows = [sample(i) for i in range(1, 41)]
    rows[4] = sample(5, answer=" ")
    rows[9] = BadRow("broken JSON", "row", "f.jsonl:10")
    rows[11] = sample(12, prompt="\ud800")
    rows[20] = sample(21, prompt="")
    good, bad = filter_rows(rows, "toy", 0.1)  # 4 of 40: exactly the limit
    assert len(good) == 36 and [row.source for row in bad] == ["f.jsonl:5", "f.jsonl:10", "f.jsonl:12", "f.jsonl:21"]
    assert caplog.messages == [
        "f.jsonl: skipped 4 of 40 rows: f.jsonl:5: answer: empty; f.jsonl:10: row: broken JSON; "
        "f.jsonl:12: prompt: not valid Unicode (surrogates not allowed); and 1 more"
    ]


def test_more_bad_rows_are_refused_with_file_rows_and_field():
    rows = [sample(1), sample(2, answer=""), *(sample(i) for i in range(3, 11)), sample(11, prompt="")]
    with pytest.raises(UserError) as error:
        filter_rows(rows, "toy", 0.1)
    assert str(error.value) == (
        "f.jsonl: 2 of 11 rows cannot be used and max_bad_rows is 0.1: f.jsonl:2: answer: empty; "
        "f.jsonl:11: prompt: empty. Correct these rows, map other columns with `columns`, or raise max_bad_rows."
    )
    assert len(filter_rows(rows, "toy", 0.2)[1]) == 2


def test_the_share_is_counted_per_file():
    good = [sample(i, source=f"big.csv:{i}") for i in range(100)]
    with pytest.raises(UserError, match=r"^small.csv: 1 of 2 rows"):
        filter_rows([*good, sample(1, source="small.csv:1"), sample(2, source="small.csv:2", answer="")], "toy", 0.1)


def test_rows_without_a_place_are_numbered_within_their_set():
    with pytest.raises(UserError, match=r"^my train: 1 of 2 rows.*: my train:2: prompt: empty"):
        filter_rows([sample(1, source=""), sample(2, source="", prompt="")], "my train", 0.1)


def test_a_surrogate_inside_a_message_is_found():
    with pytest.raises(UserError, match="prompt: not valid Unicode"):
        filter_rows([sample(1, prompt=[{"role": "user", "content": "\udfff"}])], "toy", 0.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": 1}, "id must be text, not an int"),
        ({"prompt": 2.5}, "prompt must be text, or a list of messages, not a float"),
        ({"answer": None}, "answer must be text, not None"),
        ({"images": "a.png"}, "images must be a list of images, not a str"),
        ({"row": [1]}, "row must be a dict, not a list"),
        ({"category": 3}, "category must be text, not an int"),
        ({"options": ["a"]}, "options must be a tuple of texts, not a list"),
    ],
)
def test_a_field_of_the_wrong_type_is_named_with_the_function(fields, said):
    def rows(split):
        return [sample(1), sample(2, **fields)]

    with pytest.raises(UserError, match=rf"rows \(.*test_rows.py:\d+\): item 2: {said}"):
        list(require_samples(rows("train"), rows))


# reference answers

PARIS = ("Paris", "Paris, France")


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        (["Paris", "Paris, France"], PARIS),
        (np.array(["Paris", "Paris, France"], dtype=object), PARIS),
        ('["Paris", "Paris, France"]', PARIS),
        ("['Paris', 'Paris, France']", PARIS),
        ("['Paris' 'Paris, France']", PARIS),  # as pandas writes an array of texts to a CSV file
        (["Paris", None, "", "Paris, France", "Paris"], PARIS),
        ([3, "three", 3.0], ("3", "three")),
        (
            {"value": "Paris", "aliases": ["Paris", "PARIS"], "normalized_aliases": ["paris"]},
            ("Paris", "PARIS", "paris"),
        ),
        ({"target": np.array(["Paris", "Paris, France"], dtype=object), "style": None}, PARIS),
        ('{"target": ["Paris", "Paris, France"]}', PARIS),
        ({"text": ["Paris", "Paris, France"], "answer_start": [3, 9]}, PARIS),
        ([{"text": "Paris"}, {"text": "Paris, France"}], PARIS),
        ("<answer>Paris</answer>", ("Paris",)),
        ("<think>Is it <answer>Rome</answer>?</think>\n<answer> Paris </answer>\n", ("Paris",)),
        ("The tag <answer>Paris</answer> stays", ("The tag <answer>Paris</answer> stays",)),
        ("[1, 2]", ("[1, 2]",)),  # an interval or a vector
        ('{"value": 5}', ('{"value": 5}',)),
        ("[not a list", ("[not a list",)),
    ],
)
def test_any_of_several_answers_is_right(cell, answers):
    assert as_answers(cell) == answers


def test_all_of_several_answers_are_one_text():
    assert as_answers(["3", 4.0], "all") == ("3, 4",) and as_answers('["3", "4"]', "all") == ('["3", "4"]',)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ([["a"], ["b"]], "a list of lists; give one list of answers"),
        ([None, ""], "missing"),
        ({"x": 1}, "a dict without an answer; the known keys are value, target, text"),
        ({"text": [], "answer_start": []}, "a dict without an answer"),
        ("<answer> </answer>", "empty"),
    ],
)
def test_answers_that_cannot_be_read(cell, said):
    with pytest.raises(BadRow, match=f"answer: {said}"):
        as_answers(cell)


def test_several_answers_become_aliases():
    for row in (
        {"prompt": "q", "golden_answers": ["a", "b"], "reward_model": {"ground_truth": {"target": ["a", "b"]}}},
        {"prompt": "q", "reward_model": '{"ground_truth": {"target": ["a", "b"]}}'},
        {"prompt": "q", "answers": {"text": ["a", "b"]}},
    ):
        assert map_columns(row, {}, "", "f:1").references == ("a", "b")
    assert map_columns({"prompt": "q", "answer": ["a", "b"]}, {}, "", "f:1", answers="all").references == ("a, b",)


@pytest.mark.parametrize(
    ("cell", "rewards"),
    [
        ("form", {"form": None}),
        (["form", "answer"], {"form": None, "answer": None}),
        ('{"form": 0.25, "answer": 1}', {"form": 0.25, "answer": 1}),
        ("", None),
        ({"form": 0.5, "answer": None}, {"form": 0.5}),  # as Parquet fills up the dicts of other rows
        ([], "expected a reward's name"),
        ([["form", 1.0]], "expected a reward's name"),
        (0.5, "expected a reward's name, a list of names"),
        ({"form": "much"}, "expected a reward's name"),
        ({"form": float("nan")}, "expected a reward's name"),
    ],
)
def test_a_column_names_the_rewards_of_a_row(cell, rewards):
    row = {"prompt": "q", "answer": "a", "r": cell, "reward": 0.5}  # read only where `columns` maps it
    assert map_columns(row, {}, "", "f:1").rewards is None
    if isinstance(rewards, str):
        with pytest.raises(BadRow, match=f"reward: {rewards}"):
            map_columns(row, {"reward": "r"}, "", "f:1")
    else:
        assert map_columns(row, {"reward": "r"}, "", "f:1").rewards == rewards


@pytest.mark.parametrize("form", ["own", "trl", "verl", "easyr1"])
def test_an_answer_that_is_an_object_reaches_rewards_as_one(form):
    functions = {
        "own": lambda completion, sample: sample.answer_object["ids"] == [1, 2],
        "trl": lambda completions, solution, **_: [cell["ids"] == [1, 2] for cell in solution],
        "verl": lambda data_source, solution_str, ground_truth, extra_info=None: ground_truth["ids"] == [1, 2],
        "easyr1": lambda reward_input: {"overall": float(reward_input["ground_truth"]["ids"] == [1, 2])},
    }
    for cell in ({"ids": [1, 2]}, '{"ids": [1, 2]}', {"ids": np.array([1, 2])}):
        sample = map_columns({"prompt": "q", "reward_model": {"ground_truth": cell}}, {}, "", "f:1", answers="object")
        assert sample.answer == '{"ids": [1, 2]}'
        assert FunctionReward(functions[form], name="f").score([(Completion("", (), "stop"), sample)])[0].value == 1
    assert map_columns({"prompt": "q", "answer": "4"}, {}, "", "f:1", answers="object").answer == "4"


def test_nested_columns_are_read_in_json_text():
    row = {"prompt": "q", "meta": '{"gt": {"value": 4}}', "old": "{'gt': '5'}", "note": "none"}
    assert map_columns(row, {"answer": "meta.gt.value"}, "", "").answer == "4"
    assert map_columns(row, {"answer": "old.gt"}, "", "").answer == "5"
    with pytest.raises(BadRow, match=r"answer: 'note\.gt' cannot be read, because 'note' is no dict or list and "):
        map_columns(row, {"answer": "note.gt"}, "", "")


# ShareGPT

TURNS = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]
USER = {"role": "user", "content": "1+1?"}


def test_sharegpt_becomes_messages(jsonl, caplog):
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    turns = [*TURNS[:1], call, {"from": "observation", "value": "2"}, {"from": "human", "value": "So?"}]
    first, second = PromptDataModule(
        train=jsonl(
            [
                {"conversations": json.dumps(TURNS), "answer": "two", "system": "S"},
                {"conversations": turns, "answer": 2},
            ]
        )
    ).load("train")
    assert (first.prompt, first.answer) == ([{"role": "system", "content": "S"}, USER], "two")
    assert [message["role"] for message in second.prompt] == ["user", "assistant", "tool", "user"]
    weighed = [[*TURNS[:1], {**TURNS[1], "weight": 0}, *TURNS], [*TURNS[:1], call | {"loss": False}, *TURNS[:1]]]
    path = jsonl([{"conversations": turns, "answer": 2} for turns in weighed])
    kept = [sample.prompt[1] for sample in PromptDataModule(train=path).load("train")]
    assert kept[0]["weight"] == 0 and kept[1]["loss"] is False
    assert second.prompt[1]["tool_calls"] == [{"function": {"name": "add", "arguments": {"a": 1}}}]
    assert not any("no column gives the answer" in text for text in caplog.messages)


def test_the_last_turn_is_the_answer_if_no_column_gives_one(jsonl, caplog):
    path = jsonl([{"conversations": TURNS}, {"conversations": TURNS}])
    samples = PromptDataModule(train=path).load("train")
    assert [(sample.prompt, sample.answer) for sample in samples] == [([USER], "2")] * 2
    assert [text for text in caplog.messages if "each conversation's last turn is the reference" in text] == [
        f"{path}: no column gives the answer, so each conversation's last turn is the reference; if another column "
        "holds the answer, map it with `columns: {answer: COLUMN}`"
    ]
    with pytest.raises(
        BadRow, match="no column 'answer'"
    ):  # an unfinished conversation, and a prompt that has a column
        map_columns({"conversations": TURNS[:1]}, {}, "", "f:1")
    with pytest.raises(BadRow, match="no column 'answer'"):
        map_columns({"prompt": [USER, {"role": "assistant", "content": "<think>"}]}, {}, "", "f:1")
    with pytest.raises(BadRow, match="unknown speaker 'alien' in `from`; the known ones are human"):
        map_columns({"conversations": [{"from": "alien", "value": "?"}], "answer": "1"}, {}, "", "f:1")
