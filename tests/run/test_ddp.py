"""Two processes do what one does: real `lit-rlvr fit` runs with gloo on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import completions, launch, metrics, summary

from lit_rlvr.run.checkpoint import last_checkpoint

CLI = Callable[..., Any]
FIT = ("fit", "--config", "tiny.yaml")
DDP = ("--trainer.strategy", "ddp", "--trainer.devices", "2")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(last_checkpoint(run), weights_only=True)["state_dict"]


def test_two_processes_end_where_one_does(run_folder: Path, lit_rlvr: CLI) -> None:
    """With everything that could differ: an odd validation set, small micro-batches, dead groups, a KL term."""
    shared = (
        "--data.init_args.held_out", "21", "--rollout.eval_samples", "2", "--rollout.eval_sampling.temperature", "1",
        "--model.init_args.tokens_per_microbatch", "120", "--model.init_args.kl_coef", "0.1",
        "--model.init_args.lr", "1e-4", "--model.init_args.aggregation", "token_mean",
    )  # fmt: skip
    one = lit_rlvr(*FIT, *shared, "--trainer.default_root_dir", "one")
    assert one.status == 0, one.err
    two = launch([*FIT, *shared, *DDP, "--trainer.default_root_dir", "two"], run_folder)
    assert two.returncode == 0, two.stderr
    assert "2 rank(s)" in two.stderr

    ours, theirs = weights(run_folder / "two"), weights(run_folder / "one")
    worst = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    assert ours.keys() == theirs.keys() and worst <= 1e-6, worst
    rows, expected = metrics(run_folder / "two"), metrics(run_folder / "one")
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        for name in wanted:
            if wanted[name] == "":
                assert row[name] == "", name
            else:
                assert float(row[name]) == pytest.approx(float(wanted[name]), rel=1e-4, abs=1e-6), (row["step"], name)
    for key in ("steps", "iterations", "accuracy_before", "accuracy_after"):
        assert summary(run_folder / "two")[key] == pytest.approx(summary(run_folder / "one")[key]), key
    assert [row["completion"] for row in completions(run_folder / "two")] == [
        row["completion"] for row in completions(run_folder / "one")
    ]
    assert two.stderr.count("step 6/6") == 1, "only one process talks"


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_is_the_uninterrupted_one(run_folder: Path) -> None:
    whole = launch([*FIT, *DDP, "--trainer.default_root_dir", "whole"], run_folder)
    first = launch([*FIT, *DDP, "--trainer.default_root_dir", "parts", "--trainer.max_steps", "3"], run_folder)
    again = launch([*FIT, *DDP, "--trainer.default_root_dir", "parts", "--ckpt_path", "last"], run_folder)
    assert whole.returncode == first.returncode == again.returncode == 0, whole.stderr + first.stderr + again.stderr
    assert summary(run_folder / "parts")["weights_sha256"] == summary(run_folder / "whole")["weights_sha256"]
    assert metrics(run_folder / "parts") == metrics(run_folder / "whole")


@pytest.mark.slow
def test_indivisible_prompts_are_refused(run_folder: Path) -> None:
    result = launch([*FIT, *DDP, "--data.init_args.prompts_per_step", "3"], run_folder)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "prompts_per_step" in result.stderr and "2 processes" in result.stderr
