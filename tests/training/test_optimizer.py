"""Another optimizer than AdamW, from a config, resumed exactly after a stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_run, fit, metrics, to
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from transformers import get_scheduler

from lit_rlvr.algorithms import GRPO
from lit_rlvr.errors import UserError
from lit_rlvr.options import Optim
from lit_rlvr.training import optimizer as optimizer_module
from lit_rlvr.training.optimizer import build_optimizer, build_schedule, unallocated

CLI = Callable[..., Any]
UNVALIDATED = ("--trainer.limit_val_batches", 0, "--trainer.num_sanity_val_steps", 0)
OPTIMIZER = "--model.init_args.optim.optimizer"
SGD = (OPTIMIZER, "torch.optim.SGD", f"{OPTIMIZER}.init_args.momentum", "0.9")


@pytest.mark.slow
def test_a_run_with_it_goes_on_exactly(run_folder: Path, lit_rlvr: CLI) -> None:
    optimizer = (OPTIMIZER, "bitsandbytes.optim.AdamW8bit")
    schedule = (*optimizer, "--model.init_args.optim.lr_schedule", "linear", "--trainer.max_steps", 6)
    fit(lit_rlvr, *schedule, *to("whole"))
    fit(lit_rlvr, *schedule[:-1], 3, *to("parts"), "--model.init_args.optim.lr_schedule", "constant")
    fit(lit_rlvr, *optimizer, "--model.init_args.optim.lr_schedule", "constant", *to("constant"))
    fit(lit_rlvr, *optimizer, "--model.init_args.optim.lr_schedule", "constant", *to("parts"), "--ckpt_path", "last")
    assert_same_run(run_folder / "parts", run_folder / "constant", resumed=3)
    rates = [float(row["train/lr"]) for row in metrics(run_folder / "whole")[1:]]
    assert rates == pytest.approx([1e-3 * (6 - k) / 6 for k in range(6)]), "its learning rate is model.lr"


def test_its_step_is_its_own() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = build_optimizer([weight], 0.5, Optim(lambda parameters: torch.optim.SGD(parameters)))
    weight.grad = torch.tensor([0.2, -0.4])
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.9, 2.2])


def test_an_optimizer_that_takes_no_shards_is_refused_before_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under FSDP2 its first step fails, after a whole rollout."""
    from bitsandbytes.optim import AdamW8bit

    weights = [nn.Parameter(torch.zeros(2))]
    assert isinstance(build_optimizer(weights, 0.1, Optim(AdamW8bit)), AdamW8bit)
    monkeypatch.setattr(optimizer_module, "has_shards", lambda found: list(found) == weights)
    with pytest.raises(UserError, match=r"AdamW8bit of bitsandbytes cannot update sharded weights; use torchao\.optim"):
        build_optimizer(weights, 0.1, Optim(AdamW8bit))


def test_weight_decay_of_another_optimizer_and_what_is_no_optimizer_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.optim\.weight_decay:"):
        GRPO(optim={"optimizer": torch.optim.SGD, "weight_decay": 0.1})
    for wrong in (torch.optim.Muon, list):
        with pytest.raises(UserError, match=r"model\.optim\.optimizer:"):
            build_optimizer([nn.Parameter(torch.zeros(2))], 0.1, Optim(wrong))  # type: ignore[arg-type]


@pytest.mark.first_case_fast
@pytest.mark.parametrize("limit", ["3", "0.75"])
def test_a_schedule_counts_the_batches_that_an_epoch_is_limited_to(run_folder: Path, lit_rlvr: CLI, limit: str) -> None:
    """Two epochs of 3 of the 4 batches are 6 steps: the rate falls by a sixth a step."""
    options = ("--trainer.limit_train_batches", limit, "--trainer.max_epochs", 2, "--trainer.max_steps", -1)
    short = (*options, "--model.init_args.optim.lr_schedule", "linear", *UNVALIDATED, *to("run"))
    assert "steps: 6 optimizer steps, 6 iterations" in fit(lit_rlvr, *short, "--dry-run").out
    assert "step 6/6" in fit(lit_rlvr, *short).err
    rates = [float(row["train/lr"]) for row in metrics(run_folder / "run")]
    assert rates == pytest.approx([1e-3 * (6 - k) / 6 for k in range(6)], rel=1e-6)
    if limit == "3":
        longer = fit(lit_rlvr, *short, "--trainer.max_epochs", 3, "--ckpt_path", "last").err
        assert "the learning rate rises from the checkpoint's 0 to 0.000333, because it now decays" in longer


def test_two_moments_are_to_come_for_each_weight_on_the_device_without_a_state() -> None:
    here, there = (nn.Parameter(torch.ones(5, device=device)) for device in ("cpu", "meta"))
    optimizer = build_optimizer([here, there], 0.1, Optim(torch.optim.AdamW))
    assert unallocated(optimizer, torch.device("meta", 0)) == unallocated(optimizer, torch.device("cpu")) == 2 * 5 * 4
    here.grad = torch.ones(5)
    optimizer.step()
    assert unallocated(optimizer, torch.device("cpu")) == 0


def test_of_a_sharded_weight_the_moments_of_a_shard_are_to_come(fake_world: None) -> None:
    mesh = DeviceMesh("cpu", [0, 1], _init_backend=False, _rank=0)
    weight: Tensor = DTensor.from_local(torch.ones(3, 2), mesh, [Shard(0)], run_check=False)
    optimizer = torch.optim.AdamW([nn.Parameter(weight)])
    assert weight.nbytes == 6 * 2 * 4
    assert unallocated(optimizer, torch.device("cpu")) == 2 * 3 * 2 * 4


@pytest.mark.slow
def test_a_resumed_run_takes_the_options_that_changed(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that the optimizer itself has changed, as Prodigy does, stays as it was restored."""
    seen: list[dict[str, Any]] = []
    step = torch.optim.SGD.step

    def note(self: torch.optim.SGD, closure: Any = None) -> Any:
        seen.append(dict(self.param_groups[0]))
        self.param_groups[0]["dampening"] = 0.25
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", note)
    short = (*to("run"), *UNVALIDATED)
    fit(lit_rlvr, *SGD, *short, "--trainer.max_steps", 1)
    fit(lit_rlvr, *SGD[:-1], "0.5", *short, "--trainer.max_steps", 2, "--ckpt_path", "last")
    assert [(one["momentum"], one["dampening"], one["lr"]) for one in seen] == [(0.9, 0, 1e-3), (0.5, 0.25, 1e-3)]


@pytest.mark.parametrize(
    ("schedule", "theirs"), [("constant", "constant_with_warmup"), *[(s, s) for s in ("linear", "cosine")]]
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_those_of_transformers(schedule: str, theirs: str, warmup: int) -> None:
    ours, wanted = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0) for _ in range(2))
    schedules = (
        build_schedule(ours, Optim(lr_schedule=schedule, warmup_steps=warmup), 9),  # type: ignore[arg-type]
        get_scheduler(theirs, wanted, warmup, 9),
    )
    for _ in range(10):
        assert ours.param_groups[0]["lr"] == pytest.approx(wanted.param_groups[0]["lr"], abs=1e-15)
        for optimizer, stepped in zip((ours, wanted), schedules, strict=True):
            optimizer.step()
            stepped.step()
