"""The optimizer (AdamW by default), its learning-rate schedule, and a learning rate that adapts itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_rlvr.common.arguments import check_within, type_text
from lit_rlvr.common.log import log
from lit_rlvr.common.packages import pip_command
from lit_rlvr.distributed.sharding import has_shards, own_shard
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.options import AutoLR, Optim


def check_lr(lr: float | AutoLR, optim: Optim) -> None:
    """Refuse a learning rate below 0, and one that adapts from a start that only AdamW is known for.

    Raises:
        UserError: the rate is not in its interval, or `auto` has no start for this optimizer.
    """
    if not isinstance(lr, AutoLR):
        check_within("[0, inf)", "model", lr=lr)
        return
    check_within("(0, inf)", "model.lr", start=lr.start, max_kl=lr.max_kl)  # not in its init: the parser hides it there
    if optim.optimizer is not None and lr.start is None:
        raise UserError(
            "model.lr: auto knows where AdamW starts, not model.optim.optimizer; give its start: {start: 0.1}"
        )


def build_optimizer(parameters: Sequence[Tensor], lr: float, optim: Optim) -> Any:
    """Return AdamW over some parameters, or the optimizer of the settings, with this learning rate.

    Raises:
        UserError: the settings' optimizer cannot take these parameters or update sharded ones, or is something else.
    """
    if optim.optimizer is None:
        return torch.optim.AdamW(parameters, lr, optim.betas, weight_decay=optim.weight_decay, fused=True)
    try:
        optimizer = optim.optimizer(parameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.optim.optimizer: {first_line(error)}") from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"model.optim.optimizer: it makes {type_text(optimizer)}, not a torch.optim.Optimizer")
    if type(optimizer).__module__.startswith("bitsandbytes") and has_shards(all_parameters(optimizer)):
        raise UserError(
            f"model.optim.optimizer: {type(optimizer).__name__} of bitsandbytes cannot update sharded weights; use "
            f"torchao.optim.AdamW8bit ({pip_command('torchao')}), or leave the option out"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer


def all_parameters(optimizer: Any) -> list[Tensor]:
    """Return the parameters of all groups of an optimizer."""
    parameters = []
    for group in optimizer.param_groups:
        parameters.extend(group["params"])
    return parameters


def unallocated(optimizer: Any, device: torch.device) -> int:
    """Return the bytes on a device that an optimizer has yet to allocate for its state: none after a resume.

    Each weight without a state counts twice, for AdamW's two moments; of a sharded weight only this rank's shard.
    """
    waiting = []
    for p in all_parameters(optimizer):
        if p.device.type == device.type and not optimizer.state.get(p):
            waiting.append(p)
    return sum(2 * own_shard(p).nbytes for p in waiting)


def build_schedule(optimizer: Any, optim: Optim, steps: int | None) -> Any:
    """Return a learning-rate schedule, stepped by the training step: transformers' of the same name.

    Args:
        optimizer: the optimizer.
        optim: the schedule and its warm-up.
        steps: optimizer steps of the whole run; None = unknown in advance, which only a constant rate allows.

    Raises:
        UserError: the schedule needs `steps`, and it is None.
    """
    check_schedule(optim, steps)
    warmup = optim.warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if optim.lr_schedule == "constant" or steps is None:
            return 1.0
        left = max(0, steps - step) / max(1, steps - warmup)
        if optim.lr_schedule == "linear":
            return left
        return (1.0 - cos(pi * left)) / 2

    return LambdaLR(optimizer, factor)


def schedule_of_run(module: Any, optimizer: Any) -> Any:
    """Return the learning-rate schedule of a run; warn of a rate with which it learns nothing.

    Args:
        module: an `RLVRModule` with its trainer.
        optimizer: the optimizer.
    """
    batches = len(module.data.train_dataloader())
    steps = total_steps(module.trainer, batches, steps_per_iteration(module))
    warn_of_rate(module.lr, module.optim, steps)
    return build_schedule(optimizer, module.optim, steps)


def check_schedule(optim: Optim, steps: int | None) -> None:
    """Refuse a schedule that needs the number of steps, if that is not known in advance."""
    if optim.lr_schedule != "constant" and steps is None:
        raise UserError(
            f"model.optim.lr_schedule: {optim.lr_schedule} needs trainer.max_steps or trainer.max_epochs (a budget of "
            "samples or tokens ends at a step that is not known in advance); give one, or use constant"
        )


HIGH_RATE = 1e-2
"""The learning rate of AdamW above which a run is warned."""


def warn_of_rate(lr: float | AutoLR, optim: Optim, steps: int | None) -> None:
    """Warn of a learning rate with which AdamW destroys the policy, and of one that rises during the whole run.

    Args:
        lr: of the settings, which no step has if the warm-up is longer than the run.
        optim: the optimizer and its schedule.
        steps: optimizer steps of the whole run; None = unknown in advance.
    """
    if optim.optimizer is None and not isinstance(lr, AutoLR) and lr > HIGH_RATE:
        log.warning(
            "model.lr: %g: AdamW moves each weight by about this much in a step, and weights are about 0.02; "
            "take 1e-7 to 1e-3",
            lr,
        )
    if steps and optim.warmup_steps >= steps:
        log.warning(
            "model.optim.warmup_steps: %d, but the run has %d optimizer steps: the learning rate reaches %.3g of "
            "model.lr=%s at most; lower warmup_steps",
            optim.warmup_steps,
            steps,
            (steps - 1) / optim.warmup_steps,
            lr,
        )


def steps_per_iteration(module: Any) -> int:
    """Return the number of optimizer steps that an algorithm takes on a rollout."""
    return int(module.updates_per_rollout * module.epochs_per_rollout)


def train_whole_rollouts(trainer: Any, updates: int, done: int = 0) -> None:
    """Raise the trainer's `max_steps` to the end of the rollout that reaches it, and say so.

    A rollout takes all of its optimizer steps, and the schedule has to count them.

    Args:
        trainer: the run's.
        updates: optimizer steps of a rollout.
        done: optimizer steps before this run resumes.
    """
    max_steps = int(trainer.max_steps)
    rounded = done + -(-(max_steps - done) // updates) * updates
    if max_steps > done and rounded != max_steps:
        log.warning(
            "trainer.max_steps: %d ends within a rollout, which takes %d optimizer steps (model.updates_per_rollout x "
            "epochs_per_rollout): it counts as %d",
            max_steps,
            updates,
            rounded,
        )
        trainer.fit_loop.epoch_loop.max_steps = rounded


def total_steps(trainer: Any, batches: int, updates_per_batch: int) -> int | None:
    """Return the number of optimizer steps of a whole run; None if they are not known in advance.

    Args:
        trainer: the run's.
        batches: of the training data, of which `limit_train_batches` (a number or a share) are an epoch.
        updates_per_batch: optimizer steps of a batch, a rollout.
    """
    limits = [int(trainer.max_steps)] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limit = trainer.limit_train_batches
        if isinstance(limit, int):
            in_epoch = min(batches, limit)
        else:
            in_epoch = int(batches * limit)
        limits.append(in_epoch * trainer.max_epochs * updates_per_batch)
    return min(limits, default=None)


def apply_options(optimizer: Any, scheduler: Any, lr: float, saved: dict[str, Any]) -> None:
    """Override the options restored from a checkpoint with those that have changed since; equal ones change nothing.

    Warn if a schedule of more steps raises the rate.

    Args:
        optimizer: as restored.
        scheduler: as restored.
        lr: the learning rate of the settings, or the adaptive one.
        saved: the optimizer's `defaults` when the checkpoint was written; an adaptive one changes its groups' own.
    """
    before = optimizer.param_groups[0]
    started = before.get("initial_lr")
    rate = before["lr"]
    changed = {}
    for name, value in optimizer.defaults.items():
        if saved.get(name, value) != value:
            changed[name] = value
    for group in optimizer.param_groups:
        group |= changed
    set_lr(optimizer, scheduler, lr)
    rate_now = optimizer.param_groups[0]["lr"]
    if saved and started == lr and rate_now > 1.01 * rate:
        log.warning(
            "model.optim.lr_schedule: the learning rate rises from the checkpoint's %.3g to %.3g, because it now "
            "decays over more steps; for a decay that goes on, keep trainer.max_steps and max_epochs",
            rate,
            rate_now,
        )


def set_lr(optimizer: Any, schedule: Any, lr: float) -> None:
    """Set the learning rate that a schedule scales."""
    schedule.base_lrs = [lr for _ in schedule.base_lrs]
    for group, scale in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group |= {"initial_lr": lr, "lr": lr * scale(schedule.last_epoch)}
