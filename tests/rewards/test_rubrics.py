"""Rubrics in the forms of data, and columns that name rewards, targets and rubrics: one reader for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_rlvr.common.columns import column_of, lookup, single
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import LCPO, Format, MathAnswer, RubricJudge
from lit_rlvr.rewards.base import own_weights, reward_weights_of
from lit_rlvr.rewards.gold_answers import check_references
from lit_rlvr.rewards.judges.rubric import read_rubric
from lit_rlvr.types import Sample

NOWHERE = {"base_url": "http://127.0.0.1:9/v1", "model": "none"}
PAID = {"names the cause": 3.0, "is rude": -1.0}


def entries(text: str, weight: str, /, **others: Any) -> list[dict[str, Any]]:
    return [{text: name, weight: value, **others} for name, value in PAID.items()]


@pytest.mark.parametrize(
    "given",
    [
        entries("criterion", "points", weight=None),
        entries("description", "weight", criterion=None),
        entries("criterion", "weight", points=float("nan")),
        entries("Criterion", "Weight"),
        entries("criterion_text", "score"),
        entries("rubric_item", "value"),
        entries("Ingredient", "point", id=4, title="x"),
        [{"criterion": name, "points": str(value)} for name, value in PAID.items()],
        {"query": "why?", "rubrics": entries("requirement", "weight")},
        json.dumps({"rubrics": entries("question", "weight")}),
        str(entries("name", "weight")),
        [list(pair) for pair in PAID.items()],
        {**PAID, "of another row": None},
        {name: {"weight": value} for name, value in PAID.items()},
        {str(number): entry for number, entry in enumerate(entries("text", "weight"))},
        np.array(entries("criterion", "weight"), dtype=object),
    ],
)
def test_a_rubric_keeps_its_weights_in_any_form(given: Any) -> None:
    assert read_rubric(given, "") == PAID


def test_nulls_with_which_parquet_fills_up_rows_say_nothing(tmp_path: Path) -> None:
    rubrics = [entries("criterion", "points"), entries("description", "weight"), entries("text", "score")]
    pq.write_table(pa.Table.from_pylist([{"rubric": rubric} for rubric in rubrics]), tmp_path / "rubrics.parquet")
    rows = pq.read_table(tmp_path / "rubrics.parquet").to_pylist()
    assert "weight" in rows[0]["rubric"][0]
    assert [read_rubric(row["rubric"], "") for row in rows] == [PAID] * 3
    pq.write_table(pa.Table.from_pylist([{"rubric": PAID}, {"rubric": {"else": 1.0}}]), tmp_path / "mappings.parquet")
    first, second = pq.read_table(tmp_path / "mappings.parquet").to_pylist()
    assert (read_rubric(first["rubric"], ""), read_rubric(second["rubric"], "")) == (PAID, {"else": 1.0})


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            entries("criterion", "importance"),
            "criterion 1 has no weight, but 'importance', which may be one",
        ),
        (
            [{"criterion": "a", "kind": "essential"}, {"criterion": "b", "kind": "pitfall"}],
            "criterion 1 has no weight, but 'kind'",
        ),
        ([{"demand": "a"}], r"criterion 1 says in none of its keys \(demand\) what it asks for; say it as criterion"),
        ([{"criterion": "a", "weight": 1, "points": 2}], "criterion 1 has two weights, 'weight' and 'points'"),
        (
            [{"criterion": "a", "weight": 1, "polarity": "Negative"}],
            "criterion 1 is polarity: Negative, but its weight is above 0",
        ),
        ({"a": 1e308, "b": 1e308}, r"criterion 1 has the weight 1e\+308; give one between -1e\+15 and 1e\+15"),
        ({"a": 10**400}, "criterion 1 has the weight 1000"),
        ({"a": True}, "criterion 1 has the weight True; give a number as weight"),
        ([{"criterion": "a", "weight": 2}, {"criterion": "b"}], "criterion 2 has the weight None"),
        ([7], "criterion 1 is empty"),
        ([{}], "criterion 1 is empty"),
    ],
)
def test_what_may_be_a_weight_is_never_1(given: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_rubric(given, "")


def test_criteria_without_weights_count_1_with_notes_next_to_them() -> None:
    assert read_rubric([{"criterion": "a", "tags": ["x"], "id": 3}, "b"], "") == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"extra_info": {"rubric": ["a"]}}, "extra_info.rubric"),
        ({"extra_info": '{"rubric": ["a"]}'}, "extra_info.rubric"),
        ({"extra_info.rubric": ["a"]}, "extra_info.rubric"),
        ({"reward_model": [{"x": 1}, {"rubrics": '["a"]'}]}, "reward_model.1.rubrics"),
        ({"reward_model": [{"x": 1}, {"rubrics": '["a"]'}]}, "reward_model[1].rubrics"),
    ],
)
def test_the_columns_of_rubrics_and_targets_may_be_nested(row: Any, column: str) -> None:
    assert RubricJudge(server=NOWHERE, column=column).rubric_of(Sample("a", "?", "", row=row)) == {"a": 1.0}


@pytest.mark.parametrize("cell", [40, "40", 40.0, [40], "[40]"])
def test_a_target_is_read_as_other_columns_are(cell: Any) -> None:
    row = {"meta": {"tokens": cell, "list": [1, cell]}}
    for column in ("meta.tokens", "meta.list[1]"):
        LCPO(target=column).check_reference(Sample("a", "?", "", row=row))
    with pytest.raises(UserError, match=r"has no number of tokens in the column 'meta\.list\.2'"):
        LCPO(target="meta.list.2").check_reference(Sample("a", "?", "", row=row))


def test_paths_lead_into_dicts_lists_and_their_text() -> None:
    row = {"a": {"c": [5, {"d": "6"}]}, "t": '[{"x": [7]}]', "n": np.array([1, 2]), "empty": None}
    paths = ("a.c.0", "a.c[0]", "a.c[1].d", "t[0].x[0]", "n.1", "a.c.2", "a.x", "empty.0", "a.c.x", "z[0]")
    assert [lookup(row, path) for path in paths] == [5, 5, "6", 7, 2, None, None, None, None, None]
    assert (column_of("t[0].x"), column_of("a.b"), column_of("a")) == ("t", "a", "a")
    assert [single(cell) for cell in ([5], "[5]", [5, 6], "5", None)] == [5, 5, [5, 6], "5", None]


@pytest.mark.parametrize("cell", ["math", "Math", ["math"], '["math"]', "['math']", ("math",), np.array(["math"])])
@pytest.mark.parametrize("column", ["dataset", "data_source"])
def test_a_column_chooses_the_rewards_of_a_row_in_any_form(cell: Any, column: str) -> None:
    weights = own_weights([MathAnswer(name="math"), Format("{answer}", name="format", weight=0.5)])
    assert reward_weights_of(Sample("a", "?", "5", row={column: cell}), weights) == {"math": 1.0}
    assert reward_weights_of(Sample("a", "?", "5", row={column: ["math", "format"]}), weights) == weights
    assert reward_weights_of(Sample("a", "?", "5", row={column: ["other", 3, None]}), weights) == weights


def test_an_answer_for_each_of_several_rewards_is_refused() -> None:
    rewards = [MathAnswer(name="math"), MathAnswer(name="format"), MathAnswer(name="third")]
    row = {"dataset": ["math", "format"], "ground_truth": ["5", "x"]}
    with pytest.raises(UserError, match=r"f:1: dataset and ground_truth have 2 entries, an answer for each of the rew"):
        check_references(rewards, [Sample("a", "?", "5", aliases=("x",), row=row, source="f:1")])
    check_references(rewards[:2], [Sample("a", "?", "5", row=row | {"ground_truth": "5"}, source="f:1")])
