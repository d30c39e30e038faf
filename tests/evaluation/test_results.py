"""The numbers of an evaluation, against counting by hand."""

from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest

from lit_rlvr.evaluation.results import averages, bootstrap_interval, markdown, suite_results
from lit_rlvr.types import Sample

RIGHT = [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
SAMPLES = [Sample(str(i), "?", "1", category="ab"[i % 2]) for i in range(4)]


def rows(right: list[list[int]], **fields: Any) -> list[list[dict[str, Any]]]:
    base = {"tokens": 3, "finish_reason": "stop", "status": "ok"} | fields
    return [[base | {"correct": bool(x)} for x in group] for group in right]


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    results = suite_results(SAMPLES, rows(RIGHT), [])
    for k in (1, 2, 4):
        shares = [sum(any(s) for s in combinations(group, k)) / comb(5, k) for group in RIGHT]
        assert results[f"pass@{k}"] == pytest.approx(np.mean(shares))
    assert results["avg@5"] == pytest.approx(9 / 20) == results["pass@1"]
    assert ((results["n"], results["questions"]), "pass@5" in results, "greedy" in results) == ((5, 4), False, False)


def test_results_have_categories_lengths_and_statuses() -> None:
    sampled = rows(RIGHT)
    sampled[0][0] |= {"tokens": 23, "finish_reason": "length", "status": "parse_fail"}
    sampled[3][4] |= {"correct": None, "status": "error"}
    results = suite_results(SAMPLES, sampled, rows([[1], [0], [1], [1]]))
    assert results["categories"] == {
        "a": {"questions": 2, "pass@1": pytest.approx(0.1), "greedy": 1.0},
        "b": {"questions": 2, "pass@1": pytest.approx(0.7), "greedy": 0.5},
    }
    assert results["length"] == pytest.approx(4.0) and results["truncated"] == results["parse_fail"] == 0.05
    assert results["error"] == 0.05 and results["avg@5"] == 0.4, "a failed check is not right"
    assert results["greedy"] == 0.75
    unknown = suite_results(SAMPLES, [], rows([[1], [0], [1], [1]], tokens=0))
    assert (unknown["length"], unknown["n"], not [k for k in unknown if k.startswith("pass@")]) == (None, 0, True)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        low, high = bootstrap_interval((rng.random(60) < 0.3).astype(float))
        inside += low <= 0.3 <= high
    assert 180 <= inside <= 198  # 95 % of 200, and a percentile interval is a little narrow
    assert bootstrap_interval(np.ones(7)) == [1.0, 1.0]


def test_an_average_is_over_the_suites_that_have_the_result() -> None:
    """APMPO's protocol samples 16 completions on small sets, and one on the others."""
    small = {"pass@1": 0.2, "pass@16": 0.6, "length": None}
    found = averages([small, {"pass@1": 0.4}, small | {"pass@1": 0.9, "pass@16": 0.7}], ["pass@1", "pass@16", "length"])
    assert found == {"pass@1": pytest.approx(0.5), "pass@16": pytest.approx(0.65)}


def test_what_no_reward_calls_right_or_wrong_does_not_count() -> None:
    sampled, greedy = rows([[1, 1, 0, 0], [1, 0, 0, 0]] * 2), rows([[1], [0], [1], [1]])
    for row in (sampled[1][1], *sampled[2], *sampled[3], greedy[3][0]):
        row |= {"correct": None, "status": "unjudged"}
    sampled[1][3] |= {"correct": None, "status": "error"}
    results = suite_results(SAMPLES, sampled, greedy)
    assert results["pass@1"] == pytest.approx((2 / 4 + 1 / 3) / 2) and results["pass@4"] == 1.0
    assert results["pass@2"] == pytest.approx(((1 - 1 / 6) + (1 - 1 / 3)) / 2)
    assert results["avg@4"] == pytest.approx(3 / 7) and results["greedy"] == pytest.approx(2 / 3)
    assert (results["unjudged"], results["error"]) == (9 / 16, 1 / 16)
    assert results["categories"]["b"] == {"questions": 2, "pass@1": pytest.approx(1 / 3), "greedy": 0.0}
    nothing = suite_results(SAMPLES[:1], sampled[2:3], [])
    assert nothing["pass@1"] is nothing["pass@1_ci95"] is nothing["avg@4"] is None
    assert "| x | 1 | 4 |  |  |  | 3.000 |" in markdown({"x": nothing}, "t")
