"""Runs on several sets: metrics by set, and the same training after a stop, in two processes, and with staleness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_rewards import judged_as_is
from tiny_runs import CLI, FIT, STRATEGIES, assert_same_run, fit, in_two_processes, metrics, to

from lit_rlvr.distributed.checkpoints import last_checkpoint, read_checkpoint

SETS = [
    {
        "class_path": "Arithmetic",
        "init_args": {"high": 4, "held_out": 4, "operation": operation, "name": name, "rewards": rewards},
    }
    for name, operation, rewards in (
        ("sums", "add", ["first_token", "held"]),
        ("products", "multiply", {"first_token": 3.0}),
    )
]
REWARDS = [judged_as_is("first_token"), judged_as_is("held")]  # which say the same
MIXTURE = (
    *("--data", "Mixture", "--data.init_args.sets", json.dumps(SETS), "--data.init_args.prompts_per_rollout", "4"),
    *("--data.init_args.weights", "{sums: 0.7, products: 0.3}"),
    *("--data.init_args.curriculum", "{band: [0.1, 0.6], epochs: 1}"),
    *("--trainer.max_steps", "10", "--rollout.group_size", "2", "--rollout.rewards", json.dumps(REWARDS)),
)
STALE = ("--rollout.staleness", "1", "--rollout.engine", "tiny_engines.Copying")


def known(run: Path) -> dict[str, Any]:
    return read_checkpoint(last_checkpoint(run))["Mixture"]["success"]


@pytest.mark.parametrize("more", [(), pytest.param(STALE, marks=pytest.mark.slow)], ids=["sync", "stale"])
def test_a_mixture_with_a_curriculum_goes_on_exactly(more: tuple[str, ...], run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, *MIXTURE, *more, *to("whole"))
    fit(lit_rlvr, *MIXTURE, *more, "--trainer.max_steps", "6", *to("parts"))
    fit(lit_rlvr, *MIXTURE, *more, "--ckpt_path", "last", *to("parts"))
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=6)
    assert known(run_folder / "parts") == known(run_folder / "whole")
    rows = [row for row in metrics(run_folder / "whole") if row["rollout/reward"]]
    assert float(rows[-1]["rollout/retired_prompts"]) > 0
    for row in rows:
        for total, part in (("rollout/reward", "reward"), ("rollout/accuracy", "accuracy"), ("train/no_signal",) * 2):
            part = part.removeprefix("train/")
            shares = [float(row[f"train/{name}/prompts"]) for name in ("sums", "products")]
            values = [float(row[f"train/{name}/{part}"] or 0) for name in ("sums", "products")]
            both = sum(share * value for share, value in zip(shares, values, strict=True))
            assert sum(shares) == 1 and both == pytest.approx(float(row[total])), (row["step"], part)
        for name, weight in (("sums", 2.0), ("products", 3.0)):
            assert row[f"train/{name}/reward"] == "" or float(row[f"train/{name}/reward"]) == pytest.approx(
                weight * float(row[f"train/{name}/accuracy"])
            )
        assert row["reward/held"] == row["train/sums/accuracy"], "of the rows that have this reward"


@pytest.mark.slow
def test_two_processes_draw_and_retire_the_same_prompts(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, *MIXTURE, *to("one"))
    in_two_processes(run_folder, [*FIT, *STRATEGIES["ddp"], *MIXTURE, *to("two")])
    assert known(run_folder / "two") == known(run_folder / "one")
    names = ("rollout/retired_prompts", "train/sums/prompts", "train/sums/reward", "rollout/reward")
    one, two = ([{name: row[name] for name in names} for row in metrics(run_folder / run)] for run in ("one", "two"))
    assert two == one
