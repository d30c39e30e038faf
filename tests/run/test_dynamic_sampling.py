"""DAPO's dynamic sampling: more prompts until enough groups have different rewards."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny import make_rollout
from tiny_rewards import judged_as_is
from tiny_runs import CLI, assert_same_run, metrics

from lit_rlvr.rollout.summaries import mixed_groups

FIT = ("fit", "--config", "tiny.yaml", "--model", "DAPO")
RARE = ("--rollout.rewards", json.dumps([judged_as_is("rare")]))


def column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in metrics(run) if row[name]]


@pytest.mark.slow
def test_gpg_samples_until_its_share_of_groups_is_valid(run_folder: Path, lit_rlvr: CLI) -> None:
    gpg = ("fit", "--config", "tiny.yaml", "--model", "GPG", *RARE)
    share = ("--model.init_args.advantage", "GPGAdvantage", "--model.init_args.advantage.min_valid_fraction", "0.75")
    assert lit_rlvr(*gpg, *share).status == 0
    rounds, live = (
        column(run_folder / "run", "rollout/sampling_rounds"),
        column(run_folder / "run", "rollout/live_groups"),
    )
    assert max(rounds) > 1 and all(n >= 3 for n, r in zip(live, rounds, strict=True) if r < 10)
    lit_rlvr(
        *gpg, *share[:-1], "1.5", "--overwrite", "true", status=2, says="min_valid_fraction: 1.5 must lie in (0, 1]"
    )
    lit_rlvr(*FIT, *share, "--overwrite", "true", status=2, says="0.75, but DAPO samples until 1 of the groups")


@pytest.mark.slow
def test_resume_goes_on_after_the_extra_prompts(run_folder: Path, lit_rlvr: CLI) -> None:
    options = (*FIT, *RARE, "--model.init_args.updates_per_rollout", 2)
    steps = [("--trainer.max_steps", n) for n in (12, 6)]
    assert lit_rlvr(*options, *steps[0], "--trainer.default_root_dir", "whole").status == 0
    assert lit_rlvr(*options, *steps[1], "--trainer.default_root_dir", "parts").status == 0
    assert lit_rlvr(*options, *steps[0], "--trainer.default_root_dir", "parts", "--ckpt_path", "last").status == 0
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=6)


def test_mixed_groups_go_by_the_reward_unless_told_otherwise() -> None:
    rollout = make_rollout([[1], [2], [3]], [[[4], [5]]] * 3, rewards=[[0.0, 1.0], [1.0, 1.0], [0.3, 0.4]])
    rollout.correct = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    rollout.parts = {"short": torch.tensor([[0.5, 0.5], [0.5, math.nan], [0.0, 0.5]])}
    assert (mixed_groups(rollout), mixed_groups(rollout, "correct")) == ([0, 2], [1])
    assert mixed_groups(rollout, "short") == [2], "what a reward does not judge has no value"
    rollout.statuses = [["ok", "ok"], ["ok", "ok"], ["error", "ok"]]
    rollout.has_correct[1, 0] = False
    assert [mixed_groups(rollout, by) for by in ("reward", "correct", "short")] == [[0], [], []]


GRADED = ("--rollout.rewards", json.dumps([judged_as_is("graded")]), "--trainer.max_steps", "2")


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    "by", [(), ("--model.init_args.dynamic_sampling", "graded"), ("--model.init_args.dynamic_sampling", "true")]
)
def test_groups_of_partial_credit_are_kept(run_folder: Path, lit_rlvr: CLI, by: tuple[str, ...]) -> None:
    result = lit_rlvr(*FIT, *GRADED, *by, status=0)
    assert min(column(run_folder / "run", "rollout/live_groups")) >= 4
    assert max(column(run_folder / "run", "rollout/sampling_rounds")) < 10
    assert min(column(run_folder / "run", "train/grad_norm")) > 0 and "dynamic sampling found" not in result.err


def test_a_selection_that_finds_nothing_says_why(run_folder: Path, lit_rlvr: CLI) -> None:
    result = lit_rlvr(*FIT, *GRADED, "--model.init_args.dynamic_sampling", "correct", status=0)
    assert set(column(run_folder / "run", "rollout/live_groups")) == {0.0}
    assert (
        result.err.count("dynamic sampling found no group in 10 rounds whose completions differ in their correct") == 1
    )
    assert "% of the groups do differ: set model.dynamic_sampling: reward" in result.err
    refused = lit_rlvr(*FIT, *GRADED, "--model.init_args.dynamic_sampling", "grade", "--overwrite", "true")
    assert refused.status != 0
    assert "model.dynamic_sampling: there is no reward 'grade'; give reward, correct, false, or" in refused.err
    assert "a reward: graded" in refused.err
