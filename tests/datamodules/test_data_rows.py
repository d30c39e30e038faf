"""Cells, bad rows, ids."""

from __future__ import annotations

import numpy as np
import pytest

from lit_rlvr.datamodules.reading.bad_row import BadRow
from lit_rlvr.datamodules.reading.cells import as_answers, as_text, lookup, parse_text
from lit_rlvr.datamodules.reading.checks import require_samples
from lit_rlvr.datamodules.reading.images import as_images
from lit_rlvr.datamodules.reading.rows import (
    as_prompt,
    check_ids,
    filter_rows,
    map_columns,
)
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample


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
    ],
)
def test_cells_become_text(value, text):
    assert as_text(value, "answer") == text


@pytest.mark.parametrize("value", [None, "", "  \n", float("nan"), {"a": 1}, b"x", []])
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


def test_images_pass_through():
    picture = {"bytes": b"x", "path": None}
    assert as_images(picture) == (picture,) and as_images(["a.png", "", None, b"y"]) == ("a.png", b"y")
    assert as_images(None) == as_images("") == as_images([]) == ()


def test_columns_are_mapped_nested_ones_too():
    row = {"q": "1+1?", "meta": {"gold": 2.0, "topic": "sums"}, "images": ["a.png"], "id": 5}
    columns = {"prompt": "q", "answer": "meta.gold", "category": "meta.topic"}
    mapped = map_columns(row, columns, "fallback", "f:1")
    assert mapped == Sample("5", "1+1?", "2", ("a.png",), row, "sums", "f:1")
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


def test_the_first_two_rows_with_one_id_are_named():
    with pytest.raises(UserError, match=r"^f.jsonl:2 and f.jsonl:5: both rows have the id 'b'"):
        check_ids(sample(i, id=name) for i, name in enumerate(["a", "b", "c", "d", "b", "a"], 1))
    check_ids(sample(i) for i in range(3))


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

    with pytest.raises(UserError, match=rf"rows \(.*test_data_rows.py:\d+\): item 2: {said}"):
        list(require_samples(rows("train"), rows))


def test_rows_give_samples_bad_rows_or_nothing():
    good = [sample(1), BadRow("broken"), sample(2, prompt=[{"role": "user", "content": "q"}], images=("a.png",))]
    assert list(require_samples(iter(good), sample)) == good and list(require_samples(None, sample)) == []
    with pytest.raises(UserError, match="must give Samples, not an int"):
        list(require_samples(7, sample))
    with pytest.raises(UserError, match="item 2 must be a Sample"):
        list(require_samples([sample(1), {"prompt": "q"}], sample))
