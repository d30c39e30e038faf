"""When a run says that an accuracy fell, why it says so, and what it does then."""

import json
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from tiny_runs import CLI, fit, metrics, summary, to

from lit_rlvr.commands.report.runs import read_run
from lit_rlvr.common.run_files import is_complete
from lit_rlvr.run.collapse import FALSE_ALARMS, FallTest, certainty, paired_certainty, threshold
from lit_rlvr.run.health.falls import Falls
from lit_rlvr.run.health.findings import findings
from lit_rlvr.run.monitor import validation_falls


def rollouts(seed: int, course: list[float], prompts: int, group: int, spread: float) -> Iterator[tuple[float, ...]]:
    """The accuracy of iterations, its standard error and the prompts.

    Of a small spread most prompts are always right or always wrong.
    """
    rng = np.random.default_rng(seed)
    for mean in course:
        shares = rng.binomial(group, rng.beta(mean * spread, (1 - mean) * spread, prompts)) / group
        yield float(shares.mean()), float(shares.std(ddof=1)) / sqrt(prompts), prompts


def found_at(course: Iterator[tuple[float, ...]]) -> int | None:
    test = FallTest()
    return next((k for k, iteration in enumerate(course) if test.add(*iteration)), None)


def test_a_t_statistic_becomes_a_normal_one() -> None:
    for fall, df, wanted in ((2.0, 10, 1.790), (5.0, 8, 3.276), (5.0, 200, 4.848)):  # scipy: norm.isf(t.sf(fall, df))
        assert certainty(fall, 1.0, df) == pytest.approx(wanted, abs=0.01)
    assert certainty(-1.0, 1.0, 9) == 0.0


def test_all_looks_together_spend_the_rate_of_false_alarms() -> None:
    spent = [4 * (1 - NormalDist().cdf(threshold(look, 4))) for look in range(1, 2000)]
    assert sum(spent) == pytest.approx(FALSE_ALARMS * (1 - 1 / 2000), rel=1e-3)


@pytest.mark.parametrize("prompts", [4, 16])
def test_sound_runs_are_seldom_called_fallen(prompts: int) -> None:
    courses = [[0.5] * 100, [0.1] * 100, [0.1 + 0.007 * k for k in range(100)]]
    found = [
        found_at(rollouts(seed, course, prompts, 8, spread))
        for seed in range(20)
        for course in courses
        for spread in (0.5, 2.0)
    ]
    assert sum(at is not None for at in found) <= 0.05 * len(found)


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.1), (0.56, 0.03)])
@pytest.mark.parametrize("good", [3, 20])
def test_a_real_fall_is_found_within_two_iterations(before: float, after: float, good: int) -> None:
    found = [found_at(rollouts(seed, [before] * good + [after] * 2, 16, 8, 2.0)) for seed in range(50)]
    assert sum(at in (good, good + 1) for at in found) >= 45


def test_a_fall_of_a_tenth_is_none_and_a_later_fall_is_found_again() -> None:
    assert found_at(iter([(0.9, 0.001, 1000)] * 20 + [(0.82, 0.001, 1000)] * 20)) is None
    test, found = FallTest(), []
    for k, accuracy in enumerate([0.8] * 10 + [0.5] * 10 + [0.1] * 5):
        if fall := test.add(accuracy, 0.02, 100):
            found.append((k, *(round(value, 3) for value in fall)))
    assert found == [(10, 1, 0.8, 0.5), (20, 1, 0.5, 0.1)]


def test_iterations_that_differ_more_than_their_prompts_are_no_fall() -> None:
    last = (0.2, 0.05, 16)
    assert found_at(iter([(0.5 + 0.1 * (-1) ** k, 0.05, 16) for k in range(20)] + [last])) is None
    assert found_at(iter([(0.5, 0.05, 16)] * 20 + [last])) == 20


def test_few_prompts_or_none_that_differ_are_no_certainty() -> None:
    assert found_at(iter([(1.0, 0.0, 16)] * 20 + [(15 / 16, 1 / 16, 16)])) is None, "one bad prompt"
    assert found_at(iter([(1.0, 0.0, 2)] * 3 + [(0.5, 0.5, 2)])) is None
    assert found_at(iter([(1.0, 0.0, 16)] * 3 + [(0.0, 0.0, 16)])) == 3


def test_validations_are_compared_question_by_question() -> None:
    before = {str(k): float(k < 40) for k in range(80)}
    assert paired_certainty(before, before) == 0.0
    few = before | {str(k): 0.0 for k in range(8)}
    many = before | {str(k): 0.0 for k in range(30)}
    assert paired_certainty(before, few) < threshold(1) < threshold(9) < paired_certainty(before, many)
    assert paired_certainty(before, {"0": 0.0}) < threshold(1), "one question"
    rng, alarms = np.random.default_rng(0), 0
    hard = rng.beta(0.7, 0.7, 64)
    for _ in range(20):
        best: dict[str, float] = {}
        for look in range(30):
            now = {str(k): float(right) for k, right in enumerate(rng.binomial(1, hard))}
            alarms += bool(best) and paired_certainty(best, now) > threshold(look)
            best = max(best, now, key=lambda shares: sum(shares.values()))
    assert alarms <= 1


def falling(**changed: tuple[float, float]) -> dict[int, dict[str, float]]:
    """The metrics of a run whose accuracy falls at step 9, and other metrics before and then."""
    ends = {
        "rollout/accuracy": (0.5, 0.05),
        "rollout/reward": (0.5, 0.05),
        "rollout/entropy": (0.6, 0.6),
        "rollout/length": (50.0, 50.0),
        "rollout/truncated": (0.1, 0.1),
        "train/kl_step": (0.01, 0.01),
    }
    ends |= {name.replace("__", "/"): values for name, values in changed.items()}
    fixed = {"rollout/accuracy_error": 0.05, "rollout/judged_prompts": 16.0}
    return {k: fixed | {name: values[k >= 9] for name, values in ends.items()} for k in range(1, 12)}


@pytest.mark.parametrize(
    ("changed", "cause", "remedy"),
    [
        ({"train__kl_step": (0.01, 0.12)}, "the step was too large, 0.12 nats per token at step 9", "lr auto"),
        ({"train__kl_step": (0.0, 0.0)}, "the accuracy fell by half at once, at step 9", "lr auto"),
        ({"rollout__reward": (0.5, 0.9)}, "the reward is gamed, it rose meanwhile (0.5 -> 0.9)", "right answers"),
        (
            {"rollout__reward": (0.5, 0.9), "rollout__length": (50.0, 400.0)},
            "the reward is gamed by length (50 -> 400 tokens)", "best-rewarded samples",
        ),
        ({"rollout__entropy": (0.6, 0.01)}, "the entropy is gone (0.6 -> 0.01 nats per token)", "entropy_coef"),
        ({"rollout__entropy": (0.6, 4.0)}, "the entropy exploded (0.6 -> 4 nats", "lr auto"),
        ({"rollout__truncated": (0.1, 0.8)}, "completions are cut off (0.1 -> 0.8 of them)", "max_tokens"),
        (
            {"train__staleness__ess": (0.9, 0.1), "train__staleness__mean": (1.0, 3.0)},
            "the tokens are too old, 3 versions with an effective sample size of 10%", "rollout.staleness",
        ),
        ({"train__engine_difference": (0.01, 0.1)}, "log-probabilities left the trainer's (0.01 -> 0.1)", "probe"),
        ({}, "no other metric shows a cause", "samples"),
    ],
)  # fmt: skip
def test_a_fall_has_its_likely_cause(changed: dict[str, tuple[float, float]], cause: str, remedy: str) -> None:
    (fall,) = Falls().find(falling(**changed))
    assert fall.finding.title == "The accuracy of the rollouts fell"
    assert "0.500 at best, 0.050 since step 9" in fall.finding.evidence
    assert cause in fall.finding.evidence and remedy in fall.finding.remedy


def test_the_error_of_a_difference_is_that_of_the_questions(tmp_path: Path) -> None:
    """Three of four questions are answered as before: differences 1, 0, 0 and 0, of variance 1 / 4."""
    before = {"a": [1, 1], "b": [1, 1], "c": [0, 1], "d": [1, 1]}
    after = before | {"a": [0, 1]}
    lines = [{"step": step, "set": "s", "questions": questions} for step, questions in ((2, before), (4, after))]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert validation_falls(tmp_path / "validation.jsonl", 4)["val/s/fall_error"] == pytest.approx(0.25)


def test_prompts_may_be_learnt_by_heart() -> None:
    rows = falling(rollout__accuracy=(0.5, 0.6))
    for step, accuracy, fall_z in ((4, 0.5, 0.0), (11, 0.2, 6.0)):
        rows[step] |= {"val/sums/accuracy": accuracy, "val/sums/fall_z": fall_z}
    (fall,) = Falls().find(rows)
    assert fall.finding.title == "The accuracy on the validation set sums fell"
    assert "learnt by heart" in fall.finding.evidence and "0.500 at best, 0.200 since step 11" in fall.finding.evidence


def test_a_fall_that_the_run_made_good_is_no_finding() -> None:
    rows = falling()
    assert [found.title for found in findings(rows)][:1] == ["The accuracy of the rollouts fell"]
    for step in range(12, 20):
        rows[step] = rows[8]
    assert "The accuracy of the rollouts fell" not in [found.title for found in findings(rows)]


@pytest.fixture
def ruined(run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a run whose learning rate ruins a model that answers sums after a warm start."""
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path_factory.getbasetemp() / "collapse"))
    options = {
        "model.init_args.model": "tiny-llama", "model.init_args.lr": 0.05, "model.init_args.optim.warmup_steps": 6,
        "data.init_args.prompts_per_rollout": 16, "data.init_args.high": 9, "data.init_args.question": "{a}+{b}=",
        "data.init_args.chat.system_prompt": "null", "rollout.group_size": 8,
        "rollout.evaluation.sampling.temperature": 1.0,
        "rollout.rewards": json.dumps([{"class_path": "OpenAnswer", "init_args": {"exact": True}}]),
        "rollout.sampling.max_tokens": 5, "warm_start.steps": 80,
        "trainer.max_steps": 8, "rollout.validate_every_rollouts": 4, "checkpoint.every": 1, "checkpoint.minutes": 0,
    }  # fmt: skip
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


@pytest.mark.slow
def test_a_ruined_run_says_so_within_two_iterations_and_everywhere_the_same(
    run_folder: Path, lit_rlvr: CLI, ruined: list[str]
) -> None:
    said = fit(lit_rlvr, *ruined, *to("run")).err
    run = run_folder / "run"
    accuracy = [float(row["rollout/accuracy"]) for row in metrics(run) if row.get("rollout/accuracy")]
    low = next(k for k in range(1, 8) if accuracy[k] < 0.2 * max(accuracy[:k])) + 1
    finding = findings(read_run(run).metrics)[0]
    assert finding.title == "The accuracy of the rollouts fell" and "the step" in finding.evidence
    assert any(f"step {step}: {finding}" in said for step in (low, low + 1)), (accuracy, said)
    assert summary(run)["collapse"].startswith(str(finding)) and summary(run)["stopped"] is None
    assert json.loads(lit_rlvr("watch", "run", "--json").out)["run"]["findings"][0] == vars(finding)
    stopped = fit(lit_rlvr, *ruined, "--collapse.action", "stop", *to("stopped")).err
    assert f"step {summary(run_folder / 'stopped')['steps']}: {finding}" in stopped
    assert summary(run_folder / "stopped")["stopped"] == f"collapse: {finding}" and is_complete(run_folder / "stopped")
