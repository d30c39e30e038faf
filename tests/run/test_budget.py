"""A budget of samples or tokens: the run ends with the iteration that uses it up, and all that is generated counts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import FIT, completions, fit, metrics, summary, to

CLI = Callable[..., Any]
ENDLESS = ("--trainer.max_steps", -1)


def column(run: Path, name: str) -> list[int]:
    return [int(float(row[name])) for row in metrics(run) if row[name]]


@pytest.mark.parametrize(("samples", "iterations"), [(40, 3), (48, 3), (49, 4)])
def test_samples_end_a_run_with_its_iteration(run_folder: Path, lit_rlvr: CLI, samples: int, iterations: int) -> None:
    """16 completions an iteration."""
    fit(lit_rlvr, *ENDLESS, "--budget.samples", samples)
    assert column(run_folder / "run", "rollout/samples") == [16] * iterations
    found = summary(run_folder / "run")
    assert found["steps"] == iterations and found["stopped"] is None
    assert found["accuracy_after"] is not None, "it was validated"
    assert (run_folder / "run" / "checkpoints" / f"step-{iterations:06d}.ckpt").is_file()


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


def test_optimizer_steps_end_a_run_with_its_iteration(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, "--model.init_args.updates_per_rollout", 2, "--trainer.max_steps", 5, "--budget.samples", 1000)
    assert summary(run_folder / "run")["steps"] == 6 and summary(run_folder / "run")["iterations"] == 3


def test_dynamic_sampling_and_reference_rollouts_count(run_folder: Path, lit_rlvr: CLI) -> None:
    rare = ("--rollout.rewards", "[tiny_rewards.rare]")
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


def test_a_resumed_run_goes_on_counting(run_folder: Path, lit_rlvr: CLI) -> None:
    budget = ("--budget.samples", 80, "--trainer.val_check_interval", 5)
    fit(lit_rlvr, *to("whole"), *budget, *ENDLESS)
    fit(lit_rlvr, *to("parts"), *budget, "--trainer.max_steps", 2)
    fit(lit_rlvr, *to("parts"), *budget, *ENDLESS, "--ckpt_path", "last")
    assert summary(run_folder / "whole")["steps"] == 5
    assert summary(run_folder / "parts")["weights_sha256"] == summary(run_folder / "whole")["weights_sha256"]
    assert column(run_folder / "parts", "rollout/samples") == [16] * 5


def test_what_cannot_be_is_one_line(run_folder: Path, lit_rlvr: CLI) -> None:
    result = lit_rlvr(*FIT, "--budget.tokens", 0)
    assert result.status == 2 and "budget.tokens: 0 is not positive" in result.err
    result = lit_rlvr(*FIT, *ENDLESS, "--budget.samples", 16, "--model.init_args.lr_schedule", "linear")
    assert result.status == 2 and "lr_schedule: linear needs trainer.max_steps" in result.err
