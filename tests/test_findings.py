"""The page of findings says what the studies' committed results say, and its rules by hand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lit_rlvr.advantages import AAPOAdvantage, Advantage, GroupBatch
from lit_rlvr.datamodules import Arithmetic
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.rewards import FunctionReward
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.types import Sampling

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


def test_apmpo_against_gmpo_cannot_be_told_by_the_exact_test(findings: ModuleType) -> None:
    """35,192 of 2^21 choices of signs, times three claims: 0.0503. The results hold six digits of shares of 2,048
    answers, so equal sums are only equal again as counts."""
    results = findings.read("apmpo_gate")
    found = findings.by_claim(findings.STUDIES["apmpo_gate"].claims, results)
    gmpo = found["Four epochs: APMPO is better than GMPO"]
    assert gmpo.p == 35_192 / 2**21 and gmpo.adjusted == 3 * gmpo.p and gmpo.verdict == "cannot tell" == gmpo.now
    assert all(difference > 0 for difference in gmpo.by_task), "by p alone"
    three = found["Three validations: APMPO is better than GMPO"]
    assert three.claim.afterwards and round(three.p, 4) == 0.0004
    table, _, _ = findings.claims_tables(findings.STUDIES["apmpo_gate"].claims, results)
    assert "| 21 | 0.017, 0.0503 | cannot tell | **cannot tell** |" in table, "0.050 would not show the side"
    numbers = findings.gate_numbers(results["tasks"], found)
    assert numbers["intact"] == "+0.001", "(21 x 0.014 - 0.269) / 20"


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


def test_the_losses_are_compared_at_the_rates_that_were_best(findings: ModuleType) -> None:
    best, more = (
        {name: family["best_lr"] for name, family in findings.best_rates(study).items()}
        for study in ("losses_rates", "losses_more_rates")
    )
    assert findings.learning_rates("losses_best") == best
    assert findings.learning_rates("losses_more") == more | {"grpo": best["grpo"]}


def test_controls_of_the_margin_have_hand_computed_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards 1, 0 have advantages of 1, -1. References of 1, 0 and 0, 0: their own margins are 0, 0 and 0.28, 0; those
    of the other prompt the reverse; the mean of right answers is 3/4 x 0.28, of wrong ones 1/4 x -0.2."""
    monkeypatch.syspath_prepend(ROOT / "research")
    controls = importlib.import_module("controls")
    rewards = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    group = GroupBatch(rewards, rewards, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))

    def found(advantage: Advantage) -> list[list[float]]:
        return (advantage(group) - torch.tensor([1.0, -1.0])).tolist()

    assert found(AAPOAdvantage()) == near([[0.0, 0.0], [0.28, 0.0]])
    assert found(controls.ShuffledMargin()) == near([[0.28, 0.0], [0.0, 0.0]])
    assert found(controls.ConstantMargin()) == near([[0.21, -0.05]] * 2)
    assert controls.centred(group).tolist() == near([[0.55, -0.55]] * 2), "0.1 and -1 minus -0.45"


def test_smaller_than_printed_has_hand_computed_values(findings: ModuleType) -> None:
    """Differences of 0.01 and -0.01 in turn: t is -2.4 for 0.008, so p 0.02, and twice that for two printed ones."""
    base = [0.30 + 0.001 * seed for seed in range(10)]
    results = made_up({"grpo": base, "same": [x + 0.01 * (-1) ** k for k, x in enumerate(base)]})
    measure = findings.Measure("", lambda run: run["last"]["val/multi_step_arithmetic/pass@1"])

    def readings(*printed: float | None, **more: Any) -> list[str]:
        claims = [findings.Claim("", "", measure, "same", "grpo", printed=value, **more) for value in printed]
        return [finding.now for finding in findings.find(claims, results)]

    assert readings(0.008) == ["smaller than printed, in this regime: p 0.020"]
    assert readings(0.008, None, 0.1) == [
        "smaller than printed, in this regime: p 0.020", "cannot tell",
        "smaller than printed, in this regime: p < 0.001",
    ]  # fmt: skip
    assert readings(0.008, 0.008) == ["smaller than printed, in this regime: p 0.040"] * 2
    assert readings(0.005) == ["cannot tell"] and readings(0.008, now="moot: why") == ["moot: why"]


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


def near(rows: list[list[float]]) -> list[Any]:
    return [pytest.approx(row, abs=1e-5) for row in rows]


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


def test_a_measure_that_a_run_lacks_is_none(findings: ModuleType) -> None:
    """Runs that ended early, or with a value that is not finite."""
    claims = importlib.import_module("claims")
    course = {"rollout/entropy": [0.5, 0.6, 0.7, 0.8], "rollout/unsolved_prompts": [4, 2, 3, 5]}
    whole = {"quarters": course, "validations": {str(step): step / 1000 for step in (240, 270, 300)}}
    early = {"quarters": {}, "validations": {"240": 0.24, "270": None}}
    holes = {"quarters": {name: [None, *values[1:]] for name, values in course.items()}, "validations": {}}
    for measure, value in (
        (claims.ENTROPY_RISE, 0.3), (claims.UNSOLVED_RISE, 3), (claims.UNSOLVED_CHANGE, 1), (claims.LAST_THREE, 0.27),
    ):  # fmt: skip
        assert measure.of(whole) == pytest.approx(value)
        assert measure.of(early) is measure.of(holes) is None
    assert claims.LAST_THREE.of({"validations": whole["validations"] | {"300": None}}) is None


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


def test_losses_are_compared_on_the_same_minibatch(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the rollout's own weights all ratios are 1: then the losses that only clip differently are GRPO's, and
    advantages of another size change the norm alone."""
    monkeypatch.syspath_prepend(ROOT / "research")
    mechanism = importlib.import_module("mechanism")
    module = mechanism.Compared(every=1, model=str(tiny_model_folder))
    rewards = [FunctionReward("tiny_rewards.first_token", truncated_is_wrong=False)]
    rollout = RolloutCallback(group_size=4, engine=HFEngine(), sampling=Sampling(max_tokens=9), rewards=rewards)
    trainer = Trainer(
        max_steps=1, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        default_root_dir=tmp_path, callbacks=[rollout],
    )  # fmt: skip
    trainer.fit(module, datamodule=Arithmetic(prompts_per_rollout=6, held_out=10))
    measured = module.updater._measured
    for name in ("gmpo", "fac", "pmpo", "apmpo"):
        assert measured[f"gradient/{name}/cosine"] == pytest.approx(1), name
        assert measured[f"gradient/{name}/log_norm"] == pytest.approx(0, abs=1e-4), name
    assert measured["gradient/positive_dominant/cosine"] < 0.99 and measured["gradient/positive_dominant/log_norm"] > 1
    assert measured["gradient/negative_dominant/log_norm"] < 0
    names = {name for cells in mechanism.LOSSES.values() for name in cells}
    of_losses = {f"gradient/{name}/{key}" for name in names for key in ("cosine", "log_norm")}
    assert of_losses | {"gradient/live_groups"} == measured.keys()
    assert 1 <= measured["gradient/live_groups"] <= 6


def test_the_errors_of_the_picture_have_hand_computed_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """1, 2, 3 have a deviation of 1; a number without an error is drawn without a bar."""
    monkeypatch.syspath_prepend(ROOT / "research")
    mechanism = importlib.import_module("mechanism")
    assert mechanism.standard_error([1.0, 2.0, 3.0]) == pytest.approx(3**-0.5)
    assert mechanism.standard_error([1.0]) is mechanism.standard_error([1.0, float("-inf")]) is None
    bars = mechanism.errors_of([{"cosine": 0.9, "norm": 2.0, "cosine_error": 0.01, "log_norm_error": 0.1}], "norm")
    assert bars == pytest.approx([0.2]), "the norm is exp of a mean of logs"
    assert str(mechanism.errors_of([{"cosine": 0.9, "norm": 0.0, "cosine_error": None}], "cosine")) == "[nan]"
    found = json.loads((ROOT / "docs/findings/mechanism.json").read_text())
    mechanism.draw(found, tmp_path / "mechanism.png")
    assert (tmp_path / "mechanism.png").stat().st_size > 10_000


def test_printed_differences_are_those_of_the_tables(findings: ModuleType) -> None:
    """AAPO against GRPO: 56.7 - 55.2, 11.5 - 8.0 and 18.8 - 14.2; table 1 of APMPO has averages of pass@16 as well."""
    claims = importlib.import_module("claims")
    tables = ["aapo/table1_1.5b", "aapo/table1_llama"]
    assert claims.printed(tables, "aapo", "grpo") == [1.5, 3.5, 4.6]
    assert claims.printed(["apmpo/table1"], "apmpo", "grpo") == [3.0, 4.6, 6.1]
    mixed = ["agrae/table6"], "grpo", "hard_focused"
    assert claims.printed(*mixed, "pass@1") == [-1.6, -1.5, 0.7]
    claim = claims.printed_claim("", "table 1", findings.Measure("", lambda run: 0.0), "aapo", "grpo", tables)
    assert claim.where == "table 1: +1.5 to +4.6" and claim.printed == pytest.approx(0.015)
    claim = claims.printed_claim("", "table 6", findings.Measure("", float), *mixed[1:], mixed[0], column="pass@1")
    assert claim.where == "table 6, in 1 with this sign: +0.7" and claim.printed == pytest.approx(0.007)
