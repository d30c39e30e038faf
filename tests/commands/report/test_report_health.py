"""What looks wrong in a run's metrics, and what does not."""

from pathlib import Path

import pytest

from lit_rlvr.commands.report.groups import group_runs
from lit_rlvr.commands.report.page import report_page
from lit_rlvr.commands.report.runs import RunRecord
from lit_rlvr.run.advice import GUIDE, RunHistory
from lit_rlvr.run.health.findings import findings
from lit_rlvr.run.health.progress import progress

ROOT = Path(__file__).parents[3]

SOUND = {
    "train/no_signal": [0.3] * 20, "rollout/accuracy": [0.3, 0.5] * 10, "rollout/truncated": [0.05] * 20,
    "rollout/length": [100.0, 120.0] * 10, "train/entropy": [0.6, 0.4] * 10, "rollout/reward": [0.3] * 10 + [0.5] * 10,
    "val/accuracy": [0.3] * 10 + [0.5] * 10, "train/engine_difference": [0.01] * 20, "reward/status/error": [0.0] * 20,
    "train/skipped_steps": [0.0] * 20,
}  # fmt: skip


def run(**changed: list[float]) -> RunRecord:
    courses = SOUND | {name.replace("__", "/"): values for name, values in changed.items()}
    return RunRecord(
        Path("run"),
        metrics={
            2 * k + 2: {name: values[k] for name, values in courses.items() if k < len(values)} for k in range(20)
        },
    )


def test_nothing_is_found_in_a_sound_run() -> None:
    assert findings(run().metrics) == []
    assert findings({}) == [], "nothing is logged yet"


@pytest.mark.parametrize(
    ("changed", "title", "evidence", "remedy"),
    [
        ({"train__no_signal": [0.3] * 15 + [0.95] * 5}, "Most prompts give no signal", "95%", "easier prompts"),
        (
            {"train__no_signal": [0.95] * 20, "rollout__accuracy": [0.02] * 20},
            "Most prompts give no signal", "2% of the completions are correct", "`lit-rlvr tune",
        ),
        (
            {"train__no_signal": [0.95] * 20, "rollout__accuracy": [0.94] * 20},
            "Nearly all prompts are solved", "94% of the completions are correct", "harder prompts",
        ),
        (
            {"train__no_signal": [0.6] * 20, "rollout__accuracy": [0.8] * 20},
            "Most prompts give no signal", "80% of the completions are correct", "harder prompts",
        ),
        (
            {"train__no_signal": [1.0] * 20, "rollout__accuracy": [1.0] * 20, "rollout__lowest_reward": [0.5] * 20,
             "rollout__highest_reward": [0.5] * 20, "rollout__prompts_at_lowest": [1.0] * 20,
             "rollout__prompts_at_highest": [1.0] * 20},
            "Most prompts give no signal", "; every completion had the reward 0.5", "if some deserve another reward",
        ),
        (
            {"train__no_signal": [1.0] * 20, "rollout__accuracy": [0.25] * 20, "rollout__reward": [0.25] * 20,
             "rollout__lowest_reward": [0.0] * 20, "rollout__highest_reward": [1.0] * 20,
             "rollout__prompts_at_lowest": [0.75] * 20, "rollout__prompts_at_highest": [0.25] * 20},
            "Most prompts give no signal",
            "of 75% of the prompts every completion had the lowest reward (0), of 25% the highest (1)",
            "try easier prompts",
        ),
        ({"rollout__truncated": [0.1] * 10 + [0.4] * 10}, "Completions are cut off", "0.1 in the first", "max_tokens"),
        ({"rollout__truncated": [0.967] * 10 + [1.0] * 10}, "Completions are cut off", "1 in the last", "max_tokens"),
        (
            {"val__sums__truncated": [0.967, 1.0]},
            "Completions are cut off", "share cut off in validation (sums): 1 at step 4", "evaluation.sampling",
        ),
        ({"rollout__length": [100.0] * 10 + [250.0] * 10}, "Completions grow long", "100 in the first", "DrGRPO"),
        (
            {"train__entropy": [0.6] * 10 + [0.02] * 10, "rollout__reward": [0.3] * 20},
            "The entropy collapsed", "0.6 in the first", "entropy_coef",
        ),
        (
            {"train__entropy": [0.6] * 10 + [0.02] * 10, "rollout__accuracy": [0.1] * 10 + [0.3] * 10,
             "train__no_signal": [0.3] * 10 + [0.5] * 10},
            "The entropy collapsed", "0.02 in the last", "agrae",
        ),
        ({"train__entropy": [0.6] * 10 + [3.0] * 10}, "The entropy explodes", "3 in the last", "collapse.action"),
        (
            {"val__accuracy": [0.3, 0.5] + [0.4] * 18, "rollout__accuracy": [0.02 * k for k in range(20)]},
            "The training accuracy rises while the held-out accuracy falls", "0.500 at step 4, 0.400 at step 40",
            "learnt by heart",
        ),
        (
            {"rollout__reward": [0.05 * k for k in range(20)], "rollout__accuracy": [0.5] * 10 + [0.4] * 10},
            "The reward rises while the accuracy falls", "same completions: 0.5 in the first", "gamed",
        ),
        (
            {"train__engine_difference": [0.01] * 10 + [0.05] * 10},
            "The engine's log-probabilities drift from the trainer's", "0.05 in the last", "probe_every",
        ),
        ({"reward__status__error": [0.0] * 15 + [0.02] * 5}, "Rewards fail", "2.0%", "failed_rewards.jsonl"),
        ({"reward__status__timeout": [0.0] * 15 + [0.03] * 5}, "Limits stop checks", "3.0%", "cpu_seconds"),
        ({"train__skipped_steps": [0.0] * 10 + [2.0] * 10}, "Optimizer steps were skipped", "2 until step 40", "lr"),
    ],
)  # fmt: skip
def test_each_fault_is_found_alone(changed: dict[str, list[float]], title: str, evidence: str, remedy: str) -> None:
    (found,) = findings(run(**changed).metrics)
    assert (found.title, evidence in found.evidence, remedy in found.remedy) == (title, True, True)
    assert str(found).endswith(f"({GUIDE}).") and f"\n## {title}\n" in (ROOT / GUIDE).read_text()


@pytest.mark.parametrize(
    "changed",
    [
        {"rollout__accuracy": [0.06] * 5 + [0.4] * 10 + [0.84] * 5, "train__no_signal": [0.3] * 10 + [0.5] * 10},
        {"rollout__accuracy": [0.1] * 10 + [0.4] * 10, "train__no_signal": [0.3] * 20},
        {"rollout__accuracy": [0.0] * 20, "rollout__reward": [0.2] * 10 + [0.6] * 10},
    ],
    ids=["solved", "learning", "partial credit"],
)
def test_the_entropy_may_fall_while_a_run_learns(changed: dict[str, list[float]]) -> None:
    assert findings(run(train__entropy=[0.6] * 10 + [0.02] * 10, **changed).metrics) == []


def test_an_entropy_may_not_fall_where_nothing_is_learnt() -> None:
    collapsed = {"train__entropy": [0.6] * 10 + [0.02] * 10, "rollout__reward": [0.3] * 20}
    for accuracy in ([0.84] * 20, [0.8] * 10 + [0.6] * 10):
        (found,) = findings(run(**collapsed, rollout__accuracy=accuracy).metrics)
        assert found.title == "The entropy collapsed" and f"{accuracy[-1]:.0%} of the completions" in found.evidence


def test_rewards_that_nothing_gave_are_not_called_equal() -> None:
    assert findings(run(train__no_signal=[1.0] * 20, reward__status__unjudged=[1.0] * 20).metrics) == []


def test_a_reward_is_not_compared_with_the_held_out_accuracy() -> None:
    partial_credit = run(
        rollout__reward=[0.8] * 10 + [0.875] * 10, rollout__accuracy=[0.2] * 20, val__accuracy=[0.25] + [0.198] * 19
    )
    assert findings(partial_credit.metrics) == []


VALIDATED = {"val/a/accuracy_error": 0.03, "val/a/guess": 0.14}


def validated(before: float, now: float, **changed: list[float]) -> dict[int, dict[str, float]]:
    """The metrics of a run with two validations, in which nothing moves but what is changed."""
    still = {
        "rollout/accuracy": [0.1] * 20,
        "rollout/accuracy_error": [0.04] * 20,
        "rollout/truncated": [0.6] * 20,
        "train/no_signal": [0.4] * 20,
        "rollout/judged_prompts": [8.0] * 20,
        "rollout/unsolved_prompts": [6.0] * 20,
    }
    rows = run(**still | {name.replace("__", "/"): values for name, values in changed.items()}).metrics
    rows = {step: {name: row[name] for name in row if name != "val/accuracy"} for step, row in rows.items()}
    rows[0] = {"val/accuracy": before} | VALIDATED
    rows[40] |= {"val/accuracy": now} | VALIDATED
    return rows


FORM = {"rollout__truncated": [0.7] * 6 + [0.02] * 14, "rollout__accuracy": [0.0] * 6 + [0.12] * 14}


def test_small_rollouts_are_said_with_the_size_that_the_gradient_needs() -> None:
    noisy = {"train__noise_scale": [120.0] * 20, "train__step_prompts": [8.0] * 20}

    def remedy(prompts_per_rollout: int, num_prompts: int, **course: list[float]) -> str:
        history = RunHistory(prompts_per_rollout=prompts_per_rollout)
        return progress(validated(0.5, 0.52, **(course or noisy)), history, num_prompts).remedy

    assert remedy(8, 1000).startswith(
        "steps of 8 prompts; the gradient's signal needs about 120 (train/noise_scale): "
        "`lit-rlvr fit --config my.yaml --data.init_args.prompts_per_rollout 64`; or "
    )
    assert "prompts_per_rollout 128`" in remedy(16, 1000), "two steps a rollout"
    assert "prompts_per_rollout 32`" in remedy(8, 63), "no more than the data have"
    assert "more than the training set has" in remedy(8, 15)
    assert "prompts_per_rollout 64`" in remedy(0, 0), "a config that cannot be read: as many as a step has"
    nothing = progress(validated(0.1, 0.12, **noisy), RunHistory(prompts_per_rollout=8))
    assert nothing.remedy.startswith("steps of 8 prompts"), nothing.title
    enough = {"train__noise_scale": [15.9] * 20, "train__step_prompts": [8.0] * 20}
    short = {"train__noise_scale": [120.0] * 7, "train__step_prompts": [8.0] * 7}
    assert "noise_scale" not in remedy(8, 1000, **enough) + remedy(8, 1000, **short)
    assert progress(validated(0.5, 0.9, **noisy), RunHistory(prompts_per_rollout=8)).remedy == "", "what learns"


@pytest.mark.parametrize(
    ("before", "now", "changed", "title", "helps"),
    [
        (0.0, 0.05, FORM, "The form is learnt, the answers are not", "`lit-rlvr tune "),
        (0.0, 0.17, FORM, "Answers are no better than a constant guess", "`lit-rlvr tune "),
        (0.1, 0.12, {}, "Nothing is learnt so far", "`lit-rlvr tune "),
        (0.5, 0.52, {}, "No better than at the start", "--model.init_args.lr auto"),
    ],
)
def test_what_is_not_learnt_is_said_with_the_command_that_helps(
    before: float, now: float, changed: dict[str, list[float]], title: str, helps: str
) -> None:
    rows = validated(before, now, **changed)
    found = progress(rows)
    assert (found.title, helps in found.remedy) == (title, True)
    assert f"{before:.3f} -> {now:.3f} (+-0.060; always the most frequent answer: 0.140)" in found.evidence
    assert "40 of 160 sampled prompts had a right one" in found.evidence
    assert found in findings(rows) and f"\n## {title}\n" in (ROOT / GUIDE).read_text()


def test_a_run_that_learns_is_told_so_and_gets_no_advice() -> None:
    """Also one whose rollouts are ahead of its validations, or whose answers are cut off while it gets better."""
    rising = {"rollout__accuracy": [0.03 * k for k in range(20)], "rollout__truncated": [0.9] * 20}
    learnt, ahead = progress(validated(0.0, 0.4, **rising)), progress(validated(0.1, 0.12, **rising))
    assert learnt is not None and (learnt.title, learnt.remedy) == ("Right answers are learnt", "")
    assert ahead is not None and (ahead.title, ahead.remedy) == ("The rollouts get better, validation not yet", "")
    assert findings(validated(0.0, 0.4, **rising)) == findings(validated(0.1, 0.12, **rising)) == []


def test_what_cannot_be_told_yet_is_not_said() -> None:
    rows = validated(0.1, 0.12)
    assert progress({0: rows[0], 2: rows[2], 4: rows[4] | rows[40]}) is None and progress({0: rows[0]}) is None
    assert progress(rows | {40: {"val/accuracy": 0.2}}) is None, "without an error of the last one"


def test_too_short_a_run_is_not_judged_by_its_course() -> None:
    metrics = run(train__entropy=[0.6] * 4 + [0.01] * 16).metrics
    assert findings({step: metrics[step] for step in sorted(metrics)[:7]}) == []


def test_the_report_shows_what_is_found(tmp_path: Path) -> None:
    shown = report_page(
        "a title", group_runs([run(train__entropy=[0.6] * 10 + [0.02] * 10, rollout__reward=[0.3] * 20)])
    )
    assert [text for text in ("The entropy collapsed", "Worth a look", f"({GUIDE}).") if text not in shown] == []
    assert "Worth a look" not in report_page("a title", group_runs([run()]))
    rising = validated(0.0, 0.4, rollout__accuracy=[0.03 * k for k in range(20)])
    learnt = report_page("a title", group_runs([RunRecord(Path("run"), metrics=rising)]))
    assert "Right answers are learnt: validation 0.000 -&gt; 0.400" in learnt
