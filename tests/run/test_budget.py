"""A budget of samples or tokens: the run ends with the iteration that uses it up, and all that is generated counts."""

import json
import re
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_rewards import judged_as_is
from tiny_runs import CLI, FIT, completions, fit, metrics, summary, to

from lit_rlvr.common.run_files import LIVE
from lit_rlvr.run.progress import ProgressEstimator, RunProgress, _progress_text

ENDLESS = ("--trainer.max_steps", -1)


def column(run: Path, name: str) -> list[int]:
    return [int(float(row[name])) for row in metrics(run) if row[name]]


@pytest.mark.parametrize(("samples", "iterations"), [(48, 3), (49, 4)])
def test_samples_end_a_run_with_its_iteration(run_folder: Path, lit_rlvr: CLI, samples: int, iterations: int) -> None:
    """16 completions an iteration."""
    done = fit(lit_rlvr, *ENDLESS, "--budget.samples", samples)
    for step in range(1, iterations + 1):
        assert f"step {step}/{iterations} " in done.err, "known from the share that is used"
    state = json.loads((run_folder / "run" / LIVE).read_text())
    assert (state["steps"], state["seconds_left"]) == (iterations, 0)
    assert column(run_folder / "run", "rollout/samples") == [16] * iterations
    found = summary(run_folder / "run")
    assert found["steps"] == iterations and found["stopped"] is None
    assert found["accuracy_after"] is not None, "it was validated"
    assert (run_folder / "run" / "checkpoints" / f"step-{iterations:06d}.ckpt").is_file()


@pytest.mark.slow
def test_tokens_end_a_run_with_its_iteration(run_folder: Path, lit_rlvr: CLI) -> None:
    whole = ("--run.save_prompts", 4)
    fit(lit_rlvr, *to("whole"), *whole)
    tokens = [0] * 6
    for row in completions(run_folder / "whole"):
        tokens[row["step"] - 1] += row["tokens"]
    assert column(run_folder / "whole", "rollout/tokens") == tokens
    third = list(accumulate(tokens))[2]
    for budget, iterations in ((third, 3), (third + 1, 4)):
        fit(lit_rlvr, *ENDLESS, "--budget.tokens", budget, "--overwrite", "true")
        assert summary(run_folder / "run")["steps"] == iterations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "last"),
    [
        ((*ENDLESS, "--trainer.max_epochs", 2), 13),  # of four iterations each
        ((*ENDLESS, "--budget.samples", 80), 7),  # five iterations
    ],
)
def test_the_total_is_right_after_a_change_of_updates(
    run_folder: Path, lit_rlvr: CLI, limits: tuple[Any, ...], last: int
) -> None:
    fit(lit_rlvr, "--trainer.max_steps", 3)
    two = ("--model.init_args.updates_per_rollout", 2, "--ckpt_path", "last", "--trainer.limit_val_batches", 0)
    said = re.findall(r"^step (\d+)/(\d+) ", fit(lit_rlvr, *two, *limits).err, re.MULTILINE)
    assert [(int(step), int(total)) for step, total in said] == [(step, last) for step in range(5, last + 1, 2)]
    state = json.loads((run_folder / "run" / LIVE).read_text())
    assert state["step"] == state["steps"] == summary(run_folder / "run")["steps"] == last


TWICE = ("--model.init_args.updates_per_rollout", 2, "--model.init_args.epochs_per_rollout", 2)
DECAY = ("--model.init_args.optim.lr_schedule", "linear", "--model.init_args.optim.warmup_steps", 2)


def rounded(given: int, updates: int, steps: int) -> str:
    return (
        f"trainer.max_steps: {given} ends within a rollout, which takes {updates} optimizer steps "
        f"(model.updates_per_rollout x epochs_per_rollout): it counts as {steps}\n"
    )


@pytest.mark.first_case_fast
@pytest.mark.parametrize("given", [5, 7, 8])
def test_steps_that_end_within_a_rollout_are_rounded_up_before_the_start(
    run_folder: Path, lit_rlvr: CLI, given: int
) -> None:
    """The schedule, the warm-up, the progress and what a reward is told count the same steps."""
    (run_folder / "reward_that_knows.py").write_text(
        "def reward(completions, trainer_state, **_):\n    return [trainer_state.max_steps] * len(completions)\n"
    )
    knows = (
        "--rollout.rewards",
        json.dumps([{"class_path": "FunctionReward", "init_args": {"path": "reward_that_knows.reward"}}]),
        "--rollout.validate_every_rollouts",
        9,
    )
    dry = fit(lit_rlvr, *TWICE, *DECAY, "--trainer.max_steps", given, "--dry-run")
    said = fit(lit_rlvr, *TWICE, *DECAY, *knows, "--trainer.max_steps", given).err
    for printed in (dry.err, said):
        assert printed.count("trainer.max_steps") == printed.count(rounded(given, 4, 8)) == (given < 8)
    assert "8 optimizer steps, 2 iterations" in dry.out
    assert (
        [text for text in ("step 4/8 ", "step 8/8 ") if text not in said],
        summary(run_folder / "run")["steps"],
    ) == ([], 8)
    rates = [float(row["train/lr"]) for row in metrics(run_folder / "run") if row["train/lr"]]
    each = [1e-3 * factor for factor in (0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    assert rates == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 4]), "a row has the mean of its rollout's steps"
    assert set(column(run_folder / "run", "rollout/reward")) == {8.0}


@pytest.mark.slow
def test_a_resumed_run_rounds_from_where_it_is(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, "--trainer.max_steps", 3)
    said = fit(lit_rlvr, *TWICE, *DECAY, "--trainer.max_steps", 8, "--ckpt_path", "last").err
    assert said.count(rounded(8, 4, 11)) == 1 and "step 11/11 " in said
    assert summary(run_folder / "run")["steps"] == 11
    again = fit(lit_rlvr, *TWICE, *DECAY, "--trainer.max_steps", 10, "--ckpt_path", "last").err
    assert "ends within" not in again and "nothing to train" in again
    assert summary(run_folder / "run")["steps"] == 11


@pytest.mark.slow
def test_dynamic_sampling_and_reference_rollouts_count(run_folder: Path, lit_rlvr: CLI) -> None:
    rare = ("--rollout.rewards", json.dumps([judged_as_is("rare")]))
    fit(lit_rlvr, *to("dapo"), "--model", "DAPO", *rare)
    rounds = column(run_folder / "dapo", "rollout/sampling_rounds")
    assert max(rounds) > 1 and column(run_folder / "dapo", "rollout/samples") == [16 * n for n in rounds]
    fit(lit_rlvr, *to("aapo"), "--model", "AAPO", *ENDLESS, "--budget.samples", 64)
    assert column(run_folder / "aapo", "rollout/samples") == [32, 32]
    own = [16 * float(row["rollout/length"]) for row in metrics(run_folder / "aapo") if row["rollout/length"]]
    both = column(run_folder / "aapo", "rollout/tokens")
    assert all(mine < all_of_it <= mine + 16 * 8 for mine, all_of_it in zip(own, both, strict=True))
    pool = ("--model.init_args.reference_rollouts", "pool", "--model.init_args.reference_pool_size", 6)
    fit(lit_rlvr, *to("pool"), "--model", "AAPO", *pool, "--trainer.max_steps", 6)
    assert column(run_folder / "pool", "rollout/samples") == [16 + 4 * 6] * 4 + [16] * 2, "an epoch has four iterations"


def test_a_budget_of_nothing_and_a_schedule_without_an_end_are_refused(run_folder: Path, lit_rlvr: CLI) -> None:
    lit_rlvr(*FIT, "--budget.tokens", 0, status=2, says="budget.tokens: 0 must lie in")
    lit_rlvr(
        *FIT,
        *ENDLESS,
        "--budget.samples",
        16,
        "--model.init_args.optim.lr_schedule",
        "linear",
        status=2,
        says="lr_schedule: linear needs trainer.max_steps",
    )


def test_a_first_step_that_is_not_finite_has_no_loss_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    module = SimpleNamespace(iteration=1, updates_per_rollout=1, epochs_per_rollout=1)
    trainer: Any = SimpleNamespace(
        callback_metrics={"train/skipped_steps": 1.0},
        callbacks=[ProgressEstimator()],
        global_step=1,
        max_steps=2,
        max_epochs=-1,
        num_training_batches=4,
        lightning_module=module,
    )
    RunProgress().on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    assert "step 1/2  loss nan" in capsys.readouterr().err


def test_a_metric_without_a_number_is_not_in_the_progress_line() -> None:
    values = {"rollout/reward": 0.5, "train/staleness/mean": float("nan"), "train/math/accuracy": float("nan")}
    assert "staleness" not in _progress_text(values) and "math" not in _progress_text(values)
    assert "staleness 1.5" in _progress_text(values | {"train/staleness/mean": 1.5})
