"""Completions of the reference: whose weights make them, what a pool keeps, and what a checkpoint holds."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_prompt
from tiny_runs import CLI, assert_same_run, metrics

from lit_rlvr.distributed.checkpoints import last_checkpoint
from lit_rlvr.rollout.reference_rewards import ReferenceRewards
from lit_rlvr.rollout.sync import SyncSource

FIT = ("fit", "--config", "tiny.yaml", "--model", "AAPO", "--model.init_args.lr", "0.01")
ABOVE = """
from lit_rlvr.advantages import Advantage, ReferenceCompletions

class Above(Advantage):
    def __call__(self, group):
        self.seen = float(group.reference_rewards.mean())
        return group.rewards - group.reference_rewards.mean(1, keepdim=True)

    @property
    def reference_completions(self):
        return ReferenceCompletions("pool", 5)

    @property
    def metrics(self):
        return {"reference": self.seen}
"""


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, int]]:
    """(a weight, completions asked for) of every generation from another policy than the trained one."""
    seen: list[tuple[torch.Tensor, int]] = []
    sample = SyncSource.generate_reference

    def watched(self: SyncSource, prompts: Any, seeds: Any) -> Any:
        seen.append((next(self.module.reference.policy.parameters()).detach().clone(), sum(len(s) for s in seeds)))
        return sample(self, prompts, seeds)

    monkeypatch.setattr(SyncSource, "generate_reference", watched)
    return seen


def test_fresh_samples_the_initial_policy_every_time(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spy(monkeypatch)
    assert lit_rlvr(*FIT).status == 0
    assert [count for _, count in seen] == [16] * 6
    assert all(torch.equal(weight, seen[0][0]) for weight, _ in seen), "the reference is frozen"
    trained = torch.load(last_checkpoint(run_folder / "run"), weights_only=True)["state_dict"]
    assert not torch.equal(trained["policy.model.model.embed_tokens.weight"], seen[0][0])
    row = metrics(run_folder / "run")[1]
    assert {"train/margin", "train/zero_advantage_base", "train/zero_advantage"} <= row.keys()


def test_a_pool_samples_each_prompt_once(run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch)
    pool = ("--model.init_args.reference_rollouts", "pool", "--model.init_args.reference_pool_size", "6")
    assert lit_rlvr(*FIT, *pool, "--trainer.max_steps", "8").status == 0
    assert sum(count for _, count in seen) == 16 * 6, "16 training prompts, 6 completions each, in two epochs"
    callbacks = torch.load(last_checkpoint(run_folder / "run"), weights_only=True)["callbacks"]
    state = next(value for key, value in callbacks.items() if key.startswith("RolloutCallback"))
    assert {len(rewards) for rewards in state["reference"]["pool"].values()} == {6}
    assert len(state["reference"]["pool"]) == 16


def test_an_advantage_of_ones_own_gets_the_completions_that_it_asks_for(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the algorithm."""
    seen = spy(monkeypatch)
    (run_folder / "above.py").write_text(ABOVE)
    lit_rlvr("fit", "--config", "tiny.yaml", "--model.init_args.advantage", "above.Above", status=0)
    assert sum(count for _, count in seen) == 16 * 5, "16 training prompts once, 5 completions each"
    logged = [row["train/reference"] for row in metrics(run_folder / "run") if row["train/reference"]]
    assert len(logged) == 6 and all(0 <= float(value) <= 1 for value in logged)


def test_draws_from_a_pool_are_without_replacement_and_differ_by_visit() -> None:
    reference = ReferenceRewards(4)
    reference.load_state_dict({"pool": {"p": [float(i) for i in range(8)]}, "version": 0})
    draws = set()
    for iteration in range(20):
        drawn = reference._draw(iteration, make_prompt([5], "p"), 0)
        assert len(set(drawn)) == 4
        draws.add(tuple(sorted(drawn)))
    assert len(draws) > 5


@pytest.mark.slow
def test_a_renewed_reference_and_its_pool_survive_a_resume(run_folder: Path, lit_rlvr: CLI) -> None:
    options = (
        *FIT,
        "--model.init_args.reference_rollouts",
        "pool",
        "--model.init_args.kl.reference_update_every",
        "2",
    )
    assert lit_rlvr(*options, "--trainer.default_root_dir", "whole").status == 0
    assert lit_rlvr(*options, "--trainer.default_root_dir", "parts", "--trainer.max_steps", "3").status == 0
    assert lit_rlvr(*options, "--trainer.default_root_dir", "parts", "--ckpt_path", "last").status == 0
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=3)


def test_renewing_takes_the_current_policy(run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch)
    assert lit_rlvr(*FIT, "--model.init_args.kl.reference_update_every", "2").status == 0
    assert [torch.equal(a, b) for (a, _), (b, _) in itertools.pairwise(seen)] == [True, False, True, False, True]


def test_a_pool_smaller_than_the_group_is_refused(run_folder: Path, lit_rlvr: CLI) -> None:
    lit_rlvr(
        *FIT,
        "--model.init_args.reference_pool_size",
        "3",
        status=2,
        says="reference_pool_size: 3 is below rollout.group_size=4",
    )
