"""Steps whose loss or gradient is not finite."""

import itertools
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_engines import Copying
from tiny_fit import fit
from tiny_rewards import first_token
from torch import Tensor

from lit_rlvr.algorithms import GRPO
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import LossInputs, Stats
from lit_rlvr.rewards import FunctionReward
from lit_rlvr.training.step.failures import SkippedSteps

Poison = Callable[[LossInputs, Tensor], Tensor]
SMALL = {"compute": {"tokens_per_microbatch": 200}}  # two groups of six in a micro-batch


def nan_loss(x: LossInputs, loss: Tensor) -> Tensor:
    return loss * torch.nan


def infinite_gradient(x: LossInputs, loss: Tensor) -> Tensor:
    x.logp.register_hook(lambda gradient: gradient * torch.inf)
    return loss


def nan_in_the_number_only(x: LossInputs, loss: Tensor) -> Tensor:
    return loss + torch.nan


def poison(monkeypatch: pytest.MonkeyPatch, what: Poison, steps: set[int], group: int | None = None) -> None:
    """Apply `what` to the micro-batches (only those with `group`, if given) of some optimizer steps, counted from 1."""
    objective = GRPO.objective

    def poisoned(self: GRPO, x: LossInputs) -> tuple[Tensor, Stats]:
        loss, stats = objective(self, x)
        hit = self.updates + 1 in steps and (group is None or bool((x.prompt == group).any()))
        return what(x, loss) if hit else loss, stats

    monkeypatch.setattr(GRPO, "objective", poisoned)


def adam_steps(module: GRPO) -> set[float]:
    (optimizer,) = module.trainer.optimizers
    return {float(state["step"]) for state in optimizer.state.values()}


@pytest.mark.first_case_fast
@pytest.mark.parametrize("what", [nan_loss, infinite_gradient, nan_in_the_number_only])
def test_the_step_is_left_out_and_everything_else_goes_on(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Poison
) -> None:
    poison(monkeypatch, what, {2})
    module, seen = fit(tiny_model_folder, tmp_path, steps=3, optim={"lr_schedule": "linear"})
    before, during, after = seen.weights
    assert all(torch.equal(during[name], after[name]) for name in before), "the skipped step changes nothing"
    assert any(not torch.equal(before[name], during[name]) for name in before)
    assert adam_steps(module) == {2.0} and module.trainer.global_step == module.updates == 3
    assert all(bool(p.isfinite().all()) for p in module.policy.parameters())
    assert [m["train/lr"] for m in seen.metrics] == pytest.approx([1e-2, 1e-2 * 2 / 3, 1e-2 / 3])
    assert [m["train/skipped_steps"] for m in seen.metrics] == [0, 1, 1]
    assert [math.isnan(m["train/loss"]) for m in seen.metrics] == [False, True, False]
    (path,) = (tmp_path / "skipped").iterdir()
    assert path.name == "step-000002-rank-0.json"
    assert (
        json.loads(path.read_text())["wrong"]
        == {
            nan_loss: ["loss", "gradient"],
            infinite_gradient: ["gradient"],
            nan_in_the_number_only: ["loss"],
        }[what]
    )


@pytest.mark.parametrize("what", [nan_loss, infinite_gradient])
def test_the_saved_batch_says_which_micro_batch_it_was(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Poison
) -> None:
    poison(monkeypatch, what, {1}, group=4)
    _, seen = fit(tiny_model_folder, tmp_path, steps=1, skip_nothing=True, **SMALL)
    saved = json.loads((tmp_path / "skipped" / "step-000001-rank-0.json").read_text())
    rollout = seen.rollouts[0]
    assert len(saved["microbatches"]) == 3
    assert sorted(row for batch in saved["microbatches"] for row in batch["rows"]) == list(range(24))
    for batch in saved["microbatches"]:
        hit = any(row // 4 == 4 for row in batch["rows"])
        assert batch["finite"] is not hit
        assert math.isnan(batch["loss"]) is (hit and what is nan_loss)
    assert [group["group"] for group in saved["groups"]] == list(range(6))
    for p, group in enumerate(saved["groups"]):
        assert group["id"] == rollout.prompts[p].sample.id and group["prompt_token_ids"] == rollout.prompts[p].token_ids
        for g, completion in enumerate(group["completions"]):
            assert tuple(completion["token_ids"]) == rollout.completions[p][g].token_ids
            assert tuple(completion["engine_logprobs"]) == rollout.completions[p][g].logprobs
            assert completion["reward"] == float(rollout.rewards[p, g])
            assert completion["advantage"] == pytest.approx(float(rollout.advantages[p, g]))


@pytest.mark.slow
def test_too_many_in_a_row_end_the_run_with_one_line(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, nan_loss, set(range(2, 99)))
    with pytest.raises(UserError) as error:
        fit(tiny_model_folder, tmp_path, steps=9, optim={"max_skipped_steps": 3})
    said = str(error.value)
    assert "\n" not in said and "step 5: loss and gradient not finite" in said
    assert "after 3 skipped in a row (model.optim.max_skipped_steps)" in said and "step-000005-rank-0.json" in said
    assert len(list((tmp_path / "skipped").iterdir())) == 4


def test_a_good_step_in_between_sets_the_count_back(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, nan_loss, {1, 2, 4, 5})
    _, seen = fit(tiny_model_folder, tmp_path, steps=6, optim={"max_skipped_steps": 2})
    assert [m["train/skipped_steps"] for m in seen.metrics] == [1, 2, 2, 3, 4, 4]
    with pytest.raises(UserError, match="after 0 skipped"):
        fit(tiny_model_folder, tmp_path, steps=6, optim={"max_skipped_steps": 0})


def judge_others(monkeypatch: pytest.MonkeyPatch, unjudged: set[int]) -> None:
    """Let the reward fail on one completion of some iterations, counted from 1, and be None on their other 23."""
    begin, calls = FunctionReward.begin_rollout, itertools.count()

    def none_or_failed(*_: Any) -> None:
        if next(calls) % 24 == 0:
            raise ValueError

    def begin_counted(self: FunctionReward, step: int, steps: int) -> None:
        begin(self, step, steps)
        vars(self)["function"] = none_or_failed if step + 1 in unjudged else first_token

    monkeypatch.setattr(FunctionReward, "begin_rollout", begin_counted)


def test_a_rollout_without_any_reward_is_skipped(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judge_others(monkeypatch, {2, 3})
    module, seen = fit(tiny_model_folder, tmp_path, steps=5, optim={"max_skipped_steps": 2})
    for before, after, skipped in zip(seen.weights[:-1], seen.weights[1:], (False, True, True, False), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before) is skipped
    assert adam_steps(module) == {3.0} and module.updates == 5
    assert [m["train/skipped_steps"] for m in seen.metrics] == [0, 1, 2, 2, 2]
    assert [math.isnan(m["rollout/reward"]) for m in seen.metrics] == [False, True, True, False, False]
    warned = [record.message for record in caplog.records if "it is skipped" in record.message]
    assert len(warned) == 2 and "first_token: no reward for any of the 24 completions of iteration 2" in warned[0]


@pytest.mark.parametrize(
    ("unjudged", "limit", "steps", "said"),
    [
        (
            {2, 3, 4},
            2,
            9,
            "completions of iteration 4, so there is nothing to train on, after 2 such iterations in a row",
        ),
        ({1}, 0, 9, "of iteration 1, so there is nothing to train on, after 0 such"),
        ({1, 2, 3}, 5, 3, "of iteration 3, so there is nothing to train on, after 2 such"),
    ],
)
def test_too_many_rollouts_without_a_reward_end_the_run(
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unjudged: set[int],
    limit: int,
    steps: int,
    said: str,
) -> None:
    judge_others(monkeypatch, unjudged)
    with pytest.raises(UserError) as error:
        fit(tiny_model_folder, tmp_path, steps=steps, optim={"max_skipped_steps": limit})
    assert said in str(error.value) and f"(model.optim.max_skipped_steps={limit}); return a number" in str(error.value)


def test_during_training_too(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Groups are judged in the order of their iterations, 24 completions each."""
    calls = itertools.count()
    monkeypatch.setattr(
        FunctionReward, "__call__", lambda self, *pair: None if next(calls) // 24 in (1, 2) else first_token(*pair)
    )
    module, seen = fit(
        tiny_model_folder, tmp_path, steps=5, optim={"max_skipped_steps": 2}, engine=Copying(), staleness=1
    )
    assert [m["train/skipped_steps"] for m in seen.metrics] == [0, 1, 2, 2, 2] and adam_steps(module) == {3.0}
    assert caplog.text.count("it is skipped") == 2
    monkeypatch.setattr(FunctionReward, "__call__", lambda *_: None)
    with pytest.raises(UserError, match=r"of iteration 3, .* after 2 such iterations in a row"):
        fit(tiny_model_folder, tmp_path, steps=5, optim={"max_skipped_steps": 2}, engine=Copying(), staleness=1)


@pytest.mark.parametrize(("steps", "ends"), [(3, True), (4, False), (100, False)])
def test_a_run_that_ends_in_skipped_steps_fails(steps: int, ends: bool) -> None:
    skipped = SkippedSteps(10)
    for _ in range(2):  # the last two
        skipped.count(is_finite=False, is_unrewarded=False)
    with pytest.raises(UserError, match="the last 2 of 3 steps were skipped") if ends else nullcontext():
        skipped.check_end(steps)
