"""The pages of findings say what the studies' committed results say, and their rules by hand."""

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


def test_the_pages_are_made_from_the_results(findings: ModuleType) -> None:
    assert (ROOT / "research/findings.md").read_text() == findings.page(), "run: python research/findings.py"
    assert (ROOT / "docs/findings.md").read_text() == findings.short_page(), "run: python research/findings.py"


def test_a_claim_over_several_tasks_needs_one_sign_in_all(findings: ModuleType) -> None:
    """Two tasks: +0.05 in both is seen; +0.15 and -0.01 has a mean of +0.07, and a sign that depends on the task."""
    base = [0.30 + 0.001 * seed for seed in range(10)]
    cells = {"grpo": base, "both": [x + 0.05 for x in base]}
    first, second = (made_up({**cells, "one": [x + by for x in base]})["tasks"]["steps"] for by in (0.15, -0.01))
    measure = findings.Measure("", lambda run: run["last"]["val/multi_step_arithmetic/pass@1"])
    claims = [findings.Claim("", "", measure, cell, "grpo", None) for cell in ("both", "one")]
    both, one = findings.find(claims, {"tasks": {"first": first, "second": second}})
    assert (both.verdict, both.n, one.by_task) == ("seen", 20, pytest.approx([0.15, -0.01]))
    assert (one.difference, one.adjusted < 0.05, one.verdict) == (pytest.approx(0.07), True, "cannot tell")


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
    path = ROOT / f"research/results/{name}.json"
    if path.is_file():
        found = json.loads(path.read_text())
        unit, count = study.budget
        assert found["budget"] == {unit: count} and set(found["seeds"]) <= set(study.seeds)
