"""Staleness metrics, and the measured divergence of a step."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_engines import Copying
from tiny_fit import MixedVersions, fit
from two_ranks import in_two_ranks

from lit_rlvr.objectives import kl_estimate
from lit_rlvr.options import AutoLR
from lit_rlvr.training.adaptive_lr import AdaptiveStep, mean_kl, measured_rows
from lit_rlvr.training.metrics import staleness_metrics
from lit_rlvr.training.step import logprobs_in_microbatches

NAMES = {f"train/staleness/{name}" for name in ("mean", "max", "ess")}


def test_staleness_is_logged_from_the_first_old_token_on(tiny_model_folder: Path, tmp_path: Path) -> None:
    recorder = MixedVersions(iterations=(1,))
    _, seen = fit(tiny_model_folder, tmp_path, steps=6, engine=Copying(), recorder=recorder, updates_per_rollout=2)
    first, mixed, fresh = seen.metrics
    assert not NAMES & first.keys() and mixed.keys() >= NAMES
    rollout = seen.rollouts[1]
    assert rollout.advantages is not None
    ages = [
        float(age)
        for i, row in enumerate(recorder.ages[1])
        for age, used in zip(row, rollout.mask[i], strict=True)
        if used and rollout.advantages.flatten()[i] != 0
    ]
    assert mixed["train/staleness/mean"] == pytest.approx(sum(ages) / len(ages)) and 0 < sum(ages) / len(ages) < 2
    assert mixed["train/staleness/max"] == 2
    assert [fresh[f"train/staleness/{name}"] for name in ("mean", "max")] == [0, 0]
    assert fresh["train/staleness/ess"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mode", ["token_truncate", "token_reject"])
def test_the_effective_sample_size_is_that_of_the_weights_in_the_loss(
    tiny_model_folder: Path, tmp_path: Path, mode: Any
) -> None:
    recorder = MixedVersions(distance=0.3)
    module, seen = fit(
        tiny_model_folder, tmp_path, engine=Copying(), recorder=recorder, importance={"correction": mode}, lr=0.0
    )
    rollout = seen.rollouts[0]
    assert rollout.advantages is not None
    live = [int(i) for i in (rollout.advantages.flatten() != 0).nonzero()]
    old = module.policy.logprobs(rollout, live)[0].detach()  # a learning rate of 0 left the weights as they were
    ratios = (old - rollout.rollout_logprobs[live]).exp()[rollout.mask[live]].tolist()
    weights = [min(w, 2.0) if mode == "token_truncate" else float(0.5 <= w <= 2.0) for w in ratios]
    size = sum(weights) ** 2 / sum(w * w for w in weights) / len(weights)
    assert seen.metrics[0]["train/staleness/ess"] == pytest.approx(size, rel=1e-4) and size < 0.95
    assert seen.metrics[0]["train/effective_sample_size"] < size - 0.01, "that of the ratios without bounds"
    if mode == "token_reject":
        assert seen.metrics[0]["train/importance_dropped"] == pytest.approx(1 - size, rel=1e-4)


def _rank_ages(rank: int) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [True, True, True]])
    age = torch.tensor([[4, 2, 9], [0, 9, 9], [9, 9, 9], [8, 0, 0]]) * (1 - rank)
    rollout = SimpleNamespace(group_size=2, mask=mask, stale_cache=age > 2)
    prepared: Any = SimpleNamespace(rollout=rollout, age=age, live=[0, 1, 3])
    found = staleness_metrics(prepared, {0} if rank else {0, 1}, updates=2)
    wanted = {"train/staleness/mean": (4 + 2 + 8) / 2 / 9, "train/staleness/max": 4}
    assert found == pytest.approx(wanted | {"train/staleness/stale_cache": 2 / 9})
    rollout.stale_cache = None
    assert staleness_metrics(prepared, {0} if rank else {0, 1}, updates=2) == pytest.approx(wanted)
    prepared.live = [0] if rank else []
    assert staleness_metrics(prepared, {0}, updates=2) == {"train/staleness/mean": 0, "train/staleness/max": 0}
    prepared.live = []
    assert staleness_metrics(prepared, {0}, updates=2) == {}


def test_staleness_is_that_of_all_ranks(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_ages)


@pytest.mark.first_case_fast
@pytest.mark.parametrize(("updates", "precision"), [(1, "32-true"), (2, "32-true"), (1, "bf16-mixed")])
def test_the_divergence_of_a_step_is_that_of_the_policies_around_it(
    tiny_model_folder: Path, tmp_path: Path, updates: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, too, it is computed in float32."""
    measured: list[list[int]] = []

    logprobs = AdaptiveStep.measured_logprobs

    def noted(self: AdaptiveStep, plan: Any, rows: list[int]) -> Any:
        measured.append(rows)
        return logprobs(self, plan, rows)

    monkeypatch.setattr(AdaptiveStep, "measured_logprobs", noted)
    module, seen = fit(
        tiny_model_folder, tmp_path, steps=2 * updates, updates_per_rollout=updates, lr=AutoLR(start=1e-2),
        compute={"tokens_per_microbatch": 60}, trainer_options={"precision": precision},
    )  # fmt: skip
    found, (rollout, last) = [], seen.rollouts
    weights = [*seen.weights, {n: p.detach().clone() for n, p in module.policy.model.named_parameters()}]
    assert measured[::2] == measured[1::2], "before and after"
    for k, rows in enumerate(measured[::2]):
        logps, used = [], rollout if k < updates else last
        for state in weights[k : k + 2]:
            module.policy.model.load_state_dict(state, strict=False)
            logps.append(module.policy.logprobs(used, rows)[0].detach())
        mask = used.mask[rows]
        found.append(float(kl_estimate(logps[0], logps[1], mask)[mask].mean()))
    assert min(found) > 1e-5
    assert [metrics["train/kl_step"] for metrics in seen.metrics] == pytest.approx(
        [sum(found[k : k + updates]) / updates for k in (0, updates)], rel=1e-3
    )


def test_rounding_is_no_divergence_where_bfloat16_measures_it(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of shards and adapters: by weights that differ in low bits, and are afterwards what they were."""
    seen: list[Any] = []
    logprobs = AdaptiveStep.measured_logprobs

    def noted(self: AdaptiveStep, plan: Any, rows: list[int]) -> Any:
        weights = torch.cat([p.detach().flatten() for p in self.policy.parameters() if p.requires_grad])
        seen.append((logprobs(self, plan, rows), weights))
        return seen[-1][0]

    monkeypatch.setattr(AdaptiveStep, "measured_logprobs", noted)
    monkeypatch.setattr(AdaptiveStep, "measures_in_float32", False)
    half = {"precision": "bf16-mixed"}
    module, recorder = fit(tiny_model_folder, tmp_path, lr=AutoLR(start=1e-4), trainer_options=half)
    (before, _), (after, left), (again, flipped) = seen
    rounding = mean_kl(after, again)
    assert rounding > 0
    assert recorder.metrics[0]["train/kl_step"] == pytest.approx(max(mean_kl(before, after) - rounding, 0), rel=1e-5)
    ours = torch.cat([p.detach().flatten() for p in module.policy.parameters() if p.requires_grad])
    apart = ((flipped - left) / left).abs()
    assert torch.equal(ours, left)
    assert float(apart.min()) >= 2**-12
    assert float(apart.max()) <= 2**-11


def test_a_measurement_that_runs_out_of_memory_leaves_training_its_micro_batches(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide: list[int] = []

    def narrow(policy: Any, rollout: Any, rows: list[int], budget: int, *rest: Any) -> Any:
        wide.append(budget)
        if len(wide) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logprobs_in_microbatches(policy, rollout, rows, budget, *rest)

    monkeypatch.setattr("lit_rlvr.training.adaptive_lr.logprobs_in_microbatches", narrow)
    module, _ = fit(tiny_model_folder, tmp_path, 2, lr=AutoLR(start=1e-3), compute={"tokens_per_microbatch": 600})
    assert wide == [600, 300, 300, 300, 300] and module.budget.tokens == 600


def a_plan(prompts: list[Any], rows: list[int], repeats: list[int] | None = None) -> Any:
    rollout = SimpleNamespace(prompts=prompts, group_size=4, repeats=repeats or [])
    half = len(rows) // 2
    microbatches = [rows[half:], rows[:half], [0]]
    return SimpleNamespace(prepared=SimpleNamespace(rollout=rollout), microbatches=microbatches, num_counted=2)


def _rank_measures_divergence(rank: int, prompts: list[Any], wanted: list[str]) -> None:
    mine = prompts[rank::2]
    rows = measured_rows(a_plan(mine, list(range(4 * len(mine)))), 8)
    assert rows == sorted(4 * p + g for p, prompt in enumerate(mine) for g in range(4) if prompt.sample.id in wanted)


def test_the_rows_of_a_divergence_are_an_eighth_on_any_number_of_ranks(tmp_path: Path) -> None:
    prompts = [SimpleNamespace(sample=SimpleNamespace(id=f"p{k}")) for k in range(17)]
    rows = measured_rows(a_plan(prompts, list(range(68))), 8)
    assert len(rows) == 8
    in_two_ranks(tmp_path, _rank_measures_divergence, prompts, [prompts[i // 4].sample.id for i in rows])
    assert len(measured_rows(a_plan(prompts, list(range(20))), 8)) == 2, "fewer than eight groups: a part of one"
    assert len(measured_rows(a_plan(prompts, [3]), 8)) == 1
    assert measured_rows(a_plan(prompts, []), 8) == []
    many = a_plan(prompts * 10, list(range(680)), [k // 17 for k in range(170)])
    assert len(measured_rows(many, 8)) == 16, "of four groups at most"


def test_a_divergence_is_a_mean_over_the_tokens_of_all_ranks(tmp_path: Path) -> None:
    def _rank_measures_mean(rank: int) -> None:
        before = torch.tensor([-1.0, -2.0, -0.5]) if rank else torch.zeros(0)
        after = before + torch.tensor([0.1, 0.0, -0.3]) if rank else before
        wanted = sum(math.exp(d) - d - 1 for d in (0.1, 0.0, -0.3)) / 3
        assert mean_kl(before, after) == pytest.approx(wanted, rel=1e-4)

    in_two_ranks(tmp_path, _rank_measures_mean)
    assert math.isnan(mean_kl(torch.zeros(0), torch.zeros(0)))
