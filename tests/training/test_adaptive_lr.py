"""A learning rate that adapts itself: the rate by hand, and the measured divergence of a step."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_fit import fit
from tiny_runs import CLI, assert_same_run, fit as fit_command, metrics, to
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from two_ranks import in_two_ranks

from lit_rlvr.algorithms import GRPO
from lit_rlvr.distributed.sharding import own_shard
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import kl_estimate
from lit_rlvr.options import AutoLR, Optim
from lit_rlvr.training.adaptive_lr import AdaptiveLR, AdaptiveStep, mean_kl, measured_rows, step_cosine
from lit_rlvr.training.optimizer import build_optimizer, build_schedule
from lit_rlvr.training.random_step import RandomStep
from lit_rlvr.training.step.microbatches import logprobs_in_microbatches

UNVALIDATED = ("--trainer.limit_val_batches", 0, "--trainer.num_sanity_val_steps", 0)


def rates(
    steps: list[tuple[float, float]], schedule: Any = "constant", length: int | None = None, warmup: int = 0
) -> list[float]:
    """Return the learning rate of each step of a run, and of the one after it.

    Args:
        steps: divergence and cosine of each.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = build_schedule(optimizer, Optim(lr_schedule=schedule, warmup_steps=warmup), length)
    adaptive, found = AdaptiveLR(0.01, 1.0, (0.1, 10.0)), []
    for kl, cosine in steps:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        adaptive.adapt(kl, cosine, optimizer, schedule)
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


NONE = float("nan")


def test_the_rate_follows_the_cosine_of_steps() -> None:
    assert rates([(1e-3, 0.1), (1e-3, -0.2)]) == pytest.approx([1, math.exp(0.2), math.exp(0.2 - 0.4)])
    assert rates([(1e-3, NONE), (1e-3, 0.0)]) == [1, 1, 1]
    assert rates([(NONE, 0.1)]) == [1, 1], "no token was trained on"


def test_the_mean_divergence_bounds_the_rate() -> None:
    assert rates([(0.02, 0.5)]) == pytest.approx([1, 0.5**0.5]), "the largest"
    assert rates([(1e-4, -0.5)]) == pytest.approx([1, 2**0.5]), "the smallest: a fiftieth"
    assert rates([(9.0, 0.1), (float("inf"), 0.1)]) == pytest.approx([1, 1 / 1.5, 1 / 2.25]), "not faster down"
    assert rates([(0.0, 0.0), (1e-9, 0.0)]) == pytest.approx([1, 2, 4]), "not faster up"
    assert rates([(0.0, 0.0)] * 12)[-1] == 10 and rates([(1.0, 0.0)] * 12)[-1] == 0.1, "not without end"
    spiky = [(0.001 + 0.2 * (k % 5 == 4), 0.05) for k in range(50)]
    assert max(rates(spiky)[20:]) < 0.9, "one large divergence counts in full"


def test_a_schedule_scales_the_rate_and_is_no_reason_to_change_it() -> None:
    falling = [(4 - k) / 4 for k in range(4)]
    assert rates([(0.005 * f**2, 0.0) for f in falling], "linear", 4) == pytest.approx([*falling, 0])
    assert rates([(0.5, 0.1), (0.005 / 4, 0.0)], warmup=2) == pytest.approx([0, 0.5, 1]), (
        "a step at rate 0 tells nothing"
    )
    assert rates([(1e-3, 0.0), (1e-3 / 4, 0.1)], "linear", 2)[1] == 0.5 and rates(
        [(1e-3, 0.0), (1e-3 / 4, 0.1), (0.0, 0.0)], "linear", 4
    )[2] == pytest.approx(0.5 * math.exp(0.2 * 0.75)), "the cosine counts less in a decaying schedule"


def test_the_cosine_is_that_of_the_gradient_and_adamws_step() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(6)) for _ in range(9)]
    optimizer = build_optimizer(weights, 0.1, Optim())
    assert math.isnan(step_cosine(optimizer, False)), "before the first step"
    gradients, before = [], [w.detach().clone() for w in weights]
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.randn(6)
        gradients = [weight.grad.clone() for weight in weights]
        if len(optimizer.state) == 0:
            optimizer.step()
            step = torch.cat([b - w.detach() for b, w in zip(before[::4], weights[::4], strict=True)])
    gradient = torch.cat(gradients[::4])
    assert step_cosine(optimizer, False) == pytest.approx(
        float(gradient @ step / gradient.norm() / step.norm()), abs=1e-4
    )
    assert math.isnan(step_cosine(torch.optim.SGD(weights, 0.1), False)), "an optimizer without moments"


@pytest.mark.slow
def test_a_run_with_an_adapted_rate_goes_on_exactly(run_folder: Path, lit_rlvr: CLI) -> None:
    auto = ("--model.init_args.lr", "auto", "--trainer.max_steps")
    fit_command(lit_rlvr, *auto, 6, *to("whole"))
    fit_command(lit_rlvr, *auto, 3, *to("parts"))
    fit_command(lit_rlvr, *auto, 6, *to("parts"), "--ckpt_path", "last")
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=3)
    found = [float(row["train/lr"]) for row in metrics(run_folder / "whole")[1:]]
    assert found[0] == pytest.approx(1e-3 / 64) and len(set(found)) > 3


@pytest.mark.parametrize(
    ("lr", "said"),
    [
        ("fast", "model.lr: give a number, or 'auto', not fast"),
        ("{strat: 1e-5}", "did you mean 'start'"),
        ("{max_kl: 0}", "model.lr.max_kl: 0.0 must lie in (0, inf)"),
    ],
)
def test_what_is_no_rate_is_one_line(run_folder: Path, lit_rlvr: CLI, lr: str, said: str) -> None:
    fit_command(lit_rlvr, "--model.init_args.lr", lr, *to("run"), status=2, says=said)


def test_only_adamw_has_a_known_start() -> None:
    with pytest.raises(UserError, match=r"model\.lr: auto knows where AdamW starts, not model\.optim\.optimizer"):
        GRPO(optim={"optimizer": torch.optim.SGD}, lr="auto")
    assert GRPO(optim={"optimizer": torch.optim.SGD}, lr=AutoLR(start=0.1)).lr == AutoLR(start=0.1)


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
        tiny_model_folder,
        tmp_path,
        steps=2 * updates,
        updates_per_rollout=updates,
        lr=AutoLR(start=1e-2),
        compute={"tokens_per_microbatch": 60},
        trainer_options={"precision": precision},
    )
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
    """As of shards and adapters: by a step of the same size in random directions, which is taken back."""
    seen: list[Any] = []
    logprobs = AdaptiveStep.measured_logprobs

    def noted(self: AdaptiveStep, plan: Any, rows: list[int]) -> Any:
        weights = torch.cat([p.detach().flatten() for p in self.policy.parameters() if p.requires_grad])
        seen.append((logprobs(self, plan, rows), weights))
        assert not RandomStep(self.optimizer).before, "AdamW's moments are enough"
        return seen[-1][0]

    monkeypatch.setattr(AdaptiveStep, "measured_logprobs", noted)
    monkeypatch.setattr(AdaptiveStep, "measures_in_float32", False)
    half = {"precision": "bf16-mixed"}
    module, recorder = fit(tiny_model_folder, tmp_path, lr=AutoLR(start=1e-4), trainer_options=half)
    (before, start), (after, left), (again, random) = seen
    rounding = mean_kl(after, again)
    assert rounding > 0
    assert recorder.metrics[0]["train/kl_step"] == pytest.approx(max(mean_kl(before, after) - rounding, 0), rel=1e-5)
    ours = torch.cat([p.detach().flatten() for p in module.policy.parameters() if p.requires_grad])
    assert torch.equal(ours, left)
    torch.testing.assert_close((random - left).abs(), (left - start).abs(), rtol=0, atol=4e-7)  # of 1e-5
    step, other = (left - start).double(), (random - left).double()
    assert abs(float(step @ other / step.norm() / other.norm())) < 0.02


def _step(model: nn.Module, optimizer: Any, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = distribute_like(torch.randn(parameter.shape), parameter)
    optimizer.step()


def distribute_like(values: torch.Tensor, other: Any) -> torch.Tensor:
    """Shard a tensor as another one is, if it is."""
    if isinstance(other, DTensor):
        return distribute_tensor(values, other.device_mesh, other.placements)
    return values


def assert_random_step(model: nn.Module, optimizer: Any) -> None:
    """Check the random step after the third step of an optimizer: of its size, in other directions, and taken back."""
    shards = [own_shard(parameter).detach() for parameter in model.parameters()]
    for seed in range(3):
        before = [shard.clone() for shard in shards]
        random_step = RandomStep(optimizer)
        _step(model, optimizer, seed)
    after = [shard.clone() for shard in shards]
    with random_step.taken(0):
        moved = [shard - value for shard, value in zip(shards, after, strict=True)]
    for shard, first, last, other in zip(shards, before, after, moved, strict=True):
        assert torch.equal(shard, last)
        torch.testing.assert_close(other.abs(), (last - first).abs(), rtol=1e-4, atol=1e-6)
        kept_signs = (other * (last - first) > 0).float().mean()
        assert 0.3 < float(kept_signs) < 0.7


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_random_step_is_as_long_as_the_last_one(kind: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 30)
    assert_random_step(model, kind(model.parameters(), 0.01, weight_decay=0.0))


def _rank_takes_a_random_step(rank: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 30)
    fully_shard(model, mesh=DeviceMesh("cpu", torch.arange(2)))
    assert_random_step(model, build_optimizer([*model.parameters()], 0.01, Optim()))


def test_each_rank_moves_its_own_shards(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_takes_a_random_step)


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
