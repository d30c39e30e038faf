"""The page of findings says what the studies' committed results say, and its rules by hand."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lit_rlvr.compare.study import load_study

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def findings() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
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
    assert (ROOT / "docs/findings.md").read_text() == findings.page(), "run: python benchmarks/findings.py"


def test_verdicts_by_hand(findings: ModuleType) -> None:
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
    assert better.p == pytest.approx(2 / 1024) and better.adjusted == pytest.approx(6 / 1024) and better.n == 10
    assert better.difference == pytest.approx(0.059) and better.interval[0] > 0.05 and worse.interval[1] < 0
    assert same.p == 1.0 and same.smallest == pytest.approx(0.0105, abs=0.001)
    few = findings.find(claims[:1], made_up({"grpo": base[:5], "better": results_of(results, "better")[:5]}))
    assert few[0].verdict == "cannot tell", "five seeds cannot go below 2 / 32"


def test_the_readings_say_what_the_results_say(findings: ModuleType) -> None:
    """Every number of the prose that is not in a table."""
    found = {name: json.loads((ROOT / f"docs/findings/{name}.json").read_text())["tasks"] for name in findings.STUDIES}

    def mean(task: dict[str, Any], cell: str, of: Callable[[Any], float]) -> float:
        runs = task["cells"][cell]["by_seed"].values()
        return sum(of(run) for run in runs) / len(runs)

    def last_accuracy(run: Any) -> float:
        return float(run["quarters"]["rollout/accuracy"][3])

    def at_steps_of_aapo(task: dict[str, Any]) -> float:
        step = max(task["cells"]["aapo"]["by_seed"]["0"]["validations"], key=int)
        return mean(task, "grpo", lambda run: run["validations"][step])

    aapo, steps = [found["aapo"][f"g{g}"] for g in (2, 6, 10)], found["apmpo"]["steps"]["cells"]
    ends = [cell["mean"] for cell in steps.values()]
    text, image = found["losses_text"]["sums"], found["losses_image"]["geometry"]
    close = [text["cells"][name]["mean"] for name in ("grpo", "dr_grpo", "apmpo", "gspo", "grpo_lead")]
    before, own = text["before"]["mean"], image["cells"]["grpo"]["values"].values()
    said = {
        "agrae": [
            f"{100 * mean(found['agrae']['steps'], 'grpo', last_accuracy):.0f} % of GRPO's",
        ],
        "apmpo": [
            f"within {max(ends) - min(ends):.3f} of each other",
            f"exponent falls to {steps['apmpo']['last']['train/p']['mean']:.2f}",
            f"rises\nto {steps['apmpo']['last']['train/eps_ada']['mean']:.2f}",
            f"{100 * steps['grpo']['last']['train/clip_high']['mean']:.1f} % of GRPO's tokens are clipped above and "
            f"{100 * steps['grpo']['last']['train/clip_low']['mean']:.1f} % below",
        ],
        "aapo": [
            "GRPO stands at {:.3f}, {:.3f} and {:.3f}".format(*map(at_steps_of_aapo, aapo)),
            "AAPO ends at {:.3f}, {:.3f} and {:.3f}".format(*(task["cells"]["aapo"]["mean"] for task in aapo)),
        ],
        "losses_text": [
            f"end within {max(close) - min(close):.3f} of each other",
            f"{100 * before:.0f} % right before",
        ],
        "losses_image": [f"between {min(own):.2f} and {max(own):.2f}"],
    }  # fmt: skip
    for name, phrases in said.items():
        for phrase in phrases:
            assert phrase in findings.READINGS[name], phrase


def results_of(results: dict[str, Any], cell: str) -> list[float]:
    by_seed = results["tasks"]["steps"]["cells"][cell]["by_seed"]
    return [run["last"]["val/multi_step_arithmetic/pass@1"] for run in by_seed.values()]


def test_a_comparison_by_hand(findings: ModuleType) -> None:
    """Means in falling order, and differences within a seed: here they are the same in all, so their interval is."""

    def task(values: dict[str, list[float]]) -> dict[str, Any]:
        run = {"quarters": {"rollout/entropy": [0.9, 0.8, 0.7, 0.6]}}
        return {"cells": {
            name: {"values": {str(seed): x for seed, x in enumerate(found)}, "mean": sum(found) / len(found),
                   "used": {"steps": {"mean": 160.0}}, "pass_at_k": {"s": {"1": {"mean": 0.2}, "16": {"mean": 0.75}}},
                   "by_seed": {str(seed): run for seed in range(len(found))}}
            for name, found in values.items()
        }, "before": {"mean": 0.1}, "before_pass_at_k": {"s": {"2": {"mean": 0.3}, "16": {"mean": 0.7}}}}  # fmt: skip

    base = [0.1, 0.2, 0.3, 0.4, 0.5]
    text = task({"grpo": base, "dr_grpo": [x + 0.25 for x in base]})
    image = task({"grpo": base, "dr_grpo": [x - 0.05 for x in base]})
    study = {"metric": "val/accuracy", "baseline": "grpo"}
    (table,) = findings.comparisons({**study, "tasks": {"sums": text}})
    assert [row.split("|")[1].strip() for row in table.splitlines()[2:]] == ["before training", "dr grpo", "grpo"]
    assert (
        "| pass@16 |" in table
        and "| 0.250 [0.250, 0.250] | 0.750 | 0.600 | 160 | 5 |" in table
        and "| 0.300 [" in table
    )
    together = findings.over_tasks([{**study, "tasks": {"sums": text}}, {**study, "tasks": {"images": image}}])
    assert f"| {(better(0.25) + better(-0.05)) / 2:.3f} [" in together


def better(by: float) -> float:
    """The probability that a run of 0.1 to 0.5, raised by this much, is better than one of 0.1 to 0.5."""
    pairs = [(x / 10 + by, y / 10) for x in range(1, 6) for y in range(1, 6)]
    return sum(0.5 if abs(x - y) < 1e-9 else float(x > y) for x, y in pairs) / len(pairs)


@pytest.mark.parametrize("name", ["agrae", "apmpo", "aapo", "losses_text", "losses_image"])
def test_claims_are_about_cells_of_their_study(findings: ModuleType, name: str) -> None:
    study = load_study(f"studies/claims/{name}")
    cells = {(cell.task, cell.name) for cell in study.cells}
    for claim in findings.STUDIES[name].claims:
        for cell in (claim.more, claim.less):
            assert not isinstance(cell, str) or cell == "before" or (claim.task, cell) in cells, claim
    path = ROOT / f"docs/findings/{name}.json"
    if path.is_file():
        found = json.loads(path.read_text())
        unit, count = study.budget
        assert found["budget"] == {unit: count} and set(found["seeds"]) <= set(study.seeds)
