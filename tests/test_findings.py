"""The page of findings says what the studies' committed results say, and its rules by hand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def findings() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "research")
        return importlib.import_module("findings")


def made_up(values: dict[str, list[float]]) -> dict[str, Any]:
    """Results of one task, where each cell has these pass@1."""
    cells = {
        name: {
            "by_seed": {str(seed): {"last": {"val/multi_step_arithmetic/pass@1": x}} for seed, x in enumerate(found)}
        }
        for name, found in values.items()
    }
    return {"tasks": {"steps": {"cells": cells, "before_pass_at_k": {}}}}


def test_the_page_is_made_from_the_results(findings: ModuleType) -> None:
    assert (ROOT / "docs/findings.md").read_text() == findings.page(), "run: python research/findings.py"


def test_verdicts_follow_the_tests(findings: ModuleType) -> None:
    """Ten differences of one sign have p = 2 / 1024; with Holm over three claims 6 / 1024."""
    base = [0.30 + 0.001 * seed for seed in range(10)]
    results = made_up({
        "grpo": base,
        "better": [x + 0.05 + 0.01 * (k % 3) for k, x in enumerate(base)],
        "worse": [x - 0.05 for x in base],
        "same": [x + 0.01 * (-1) ** k for k, x in enumerate(base)],
    })  # fmt: skip
    measure = findings.Measure("", lambda run: run["last"]["val/multi_step_arithmetic/pass@1"])
    claims = [findings.Claim("", "", measure, cell, "grpo") for cell in ("better", "worse", "same")]
    better, worse, same = findings.find(claims, results)
    assert (better.verdict, worse.verdict, same.verdict) == ("seen", "not seen", "cannot tell")
    assert better.interval == pytest.approx([0.059 - 0.00626, 0.059 + 0.00626], abs=1e-4), "2.262 s / sqrt(10)"
    assert better.p == pytest.approx(2 / 1024) and better.adjusted == pytest.approx(6 / 1024) and better.n == 10
    assert better.difference == pytest.approx(0.059) and better.interval[0] > 0.05 and worse.interval[1] < 0
    assert same.p == 1.0 and same.could_show == pytest.approx(0.0105, abs=0.001)
    few = findings.find(claims[:1], made_up({"grpo": base[:5], "better": results_of(results, "better")[:5]}))
    assert few[0].verdict == "cannot tell", "five seeds cannot go below 2 / 32"


def test_a_claim_over_several_tasks_needs_one_sign_in_all(findings: ModuleType) -> None:
    """Two tasks: +0.05 in both is seen; +0.15 and -0.01 has a mean of +0.07, and a sign that depends on the task."""
    base = [0.30 + 0.001 * seed for seed in range(10)]
    cells = {"grpo": base, "both": [x + 0.05 for x in base]}
    first, second = (made_up({**cells, "one": [x + by for x in base]})["tasks"]["steps"] for by in (0.15, -0.01))
    measure = findings.Measure("", lambda run: run["last"]["val/multi_step_arithmetic/pass@1"])
    claims = [findings.Claim("", "", measure, cell, "grpo", None) for cell in ("both", "one")]
    both, one = findings.find(claims, {"tasks": {"first": first, "second": second}})
    assert both.verdict == "seen" and both.n == 20 and one.by_task == pytest.approx([0.15, -0.01])
    assert one.difference == pytest.approx(0.07) and one.adjusted < 0.05 and one.verdict == "cannot tell"


def test_what_was_found_afterwards_changes_no_registered_verdict(findings: ModuleType) -> None:
    base = [0.30 + 0.001 * seed for seed in range(10)]
    results = made_up({"grpo": base, "better": [x + 0.05 + 0.01 * (k % 3) for k, x in enumerate(base)]})
    measure = findings.Measure("", lambda run: run["last"]["val/multi_step_arithmetic/pass@1"])
    registered = findings.Claim("first", "", measure, "better", "grpo")
    trivial = findings.Claim("second", "", measure, "better", "grpo", by_construction=True)
    later = [findings.Claim("third", "", measure, "better", "grpo", afterwards=True)] * 9
    table, line, _, more = findings.claims_tables([registered, trivial, *later], results)
    assert "0.002, 0.004 | seen | **seen** |" in table and "second" not in table
    assert "second (0.363 against 0.304, seen)" in line and "| third |" in more and "10 of 10 | 0.002 |  |" in more


def results_of(results: dict[str, Any], cell: str) -> list[float]:
    by_seed = results["tasks"]["steps"]["cells"][cell]["by_seed"]
    return [run["last"]["val/multi_step_arithmetic/pass@1"] for run in by_seed.values()]


def test_a_comparison_has_hand_computed_values(findings: ModuleType) -> None:
    """Means over all tasks in falling order, and differences within a task and seed: here they are the same in all, so
    their interval is."""

    def task(values: dict[str, list[float]], tokens: float) -> dict[str, Any]:
        run = {"quarters": {"rollout/entropy": [0.9, 0.8, 0.7, 0.6]}}
        return {"cells": {
            name: {"values": {str(seed): x for seed, x in enumerate(found)}, "mean": sum(found) / len(found),
                   "used": {"steps": {"mean": 160.0}, "tokens": {"mean": tokens}},
                   "pass_at_k": {"s": {"1": {"mean": 0.2}, "16": {"mean": 0.75}}},
                   "by_seed": {str(seed): run for seed in range(len(found))}}
            for name, found in values.items()
        }, "before": {"mean": 0.1}, "before_pass_at_k": {"s": {"2": {"mean": 0.3}, "16": {"mean": 0.7}}}}  # fmt: skip

    base = [0.1, 0.2, 0.3, 0.4, 0.5]
    study = {"metric": "val/accuracy", "baseline": "grpo"}
    tasks = {
        "one": task({"grpo": base, "dr_grpo": [x + 0.25 for x in base]}, 40_000),
        "two": task({"grpo": base, "dr_grpo": [x + 0.25 for x in base]}, 50_000),
    }
    table = findings.comparison({**study, "tasks": tasks})
    assert [row.split("|")[1].strip() for row in table.splitlines()[2:]] == ["before training", "dr grpo", "grpo"]
    assert "| pass@16 |" in table and "| 0.300 [" in table
    assert "| 0.250 [0.250, 0.250] | 0.750 | 0.600 | 160 | 45 | 1.00 | 10 |" in table, "45 points in 45,000 tokens"
    ends = findings.ends_table({"tasks": {"low": task({"a": [0.04, 0.05, 0.3]}, 1)}})
    assert ends.splitlines()[2] == "| a | 0.040, 0.050, 0.300: 1 collapsed |", "half of 0.1 is not below it"


def test_statistics_over_all_runs_are_those_of_the_results(findings: ModuleType) -> None:
    """Of all tasks together, or of the only one; the highest interquartile mean comes first."""

    def given(value: float) -> dict[str, Any]:
        return {"value": value, "ci95": [value - 0.1, value + 0.1]}

    base, ours = {"iqm": given(0.3)}, {"iqm": given(0.5)}
    versus = {"improvement": given(0.8)}
    several = {"overall": {"grpo": base, "dr_grpo": ours | versus}, "tasks": {"one": {}, "two": {}}}
    alone = {"overall": {}, "tasks": {"one": {"cells": {"grpo": base, "dr_grpo": ours | {"versus_baseline": versus}}}}}
    rows = ["| dr grpo | 0.500 [0.400, 0.600] | 0.800 [0.700, 0.900] |", "| grpo | 0.300 [0.200, 0.400] | |"]
    for results in (several, alone):
        assert findings.over_tasks(results | {"baseline": "grpo"}).splitlines()[2:] == rows


@pytest.mark.parametrize(
    "name",
    [
        "agrae",
        "apmpo",
        "aapo",
        "aapo_margin",
        "aapo_margin_6",
        "agrae_regime",
        "apmpo_gate",
        "losses_rates",
        "losses_best",
        "losses_more_rates",
        "losses_more",
        "w_reinforce",
        "losses_image",
    ],
)
def test_claims_are_about_cells_of_their_study(findings: ModuleType, name: str) -> None:
    study = findings.load(name)
    cells = {(cell.task, cell.name) for cell in study.cells} | {(None, cell.name) for cell in study.cells}
    for claim in findings.STUDIES[name].claims if name in findings.STUDIES else ():
        for cell in (claim.more, claim.less):
            assert not isinstance(cell, str) or cell == "before" or (claim.task, cell) in cells, claim
    path = ROOT / f"docs/findings/{name}.json"
    if path.is_file():
        found = json.loads(path.read_text())
        unit, count = study.budget
        assert found["budget"] == {unit: count} and set(found["seeds"]) <= set(study.seeds)
