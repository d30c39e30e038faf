"""The optimizer, AdamW or any other, and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_rlvr.errors import UserError, first_line, kind_of

Schedule = Literal["constant", "linear", "cosine"]


MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]

BETAS, WEIGHT_DECAY = (0.9, 0.999), 0.0
"""The defaults of AdamW's own options."""


def check_options(make: MakeOptimizer | None, betas: tuple[float, float], weight_decay: float) -> None:
    """Refuse AdamW's options where another optimizer takes its place.

    Raises:
        UserError: names the option.
    """
    if make is None:
        return
    for name, value, default in (("betas", betas, BETAS), ("weight_decay", weight_decay, WEIGHT_DECAY)):
        if value != default:
            raise UserError(
                f"model.{name}: {value} is AdamW's, and model.optimizer takes its place; give it under "
                "model.optimizer.init_args"
            )


def build_optimizer(
    parameters: Sequence[Tensor], lr: float, betas: tuple[float, float], weight_decay: float,
    make: MakeOptimizer | None = None,
) -> Any:  # fmt: skip
    """AdamW over some parameters, or the optimizer that `make` builds, with this learning rate.

    Raises:
        UserError: `make` cannot take these parameters, or returns something else.
    """
    if make is None:
        return torch.optim.AdamW(parameters, lr, betas, weight_decay=weight_decay, fused=True)
    try:
        optimizer = make(parameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.optimizer: {first_line(error)}") from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"model.optimizer: it makes {kind_of(optimizer)}, which is no torch.optim.Optimizer")
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer


def all_parameters(optimizer: Any) -> list[Tensor]:
    """The parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def build_schedule(optimizer: Any, schedule: Schedule, warmup_steps: int, steps: int | None) -> Any:
    """A learning-rate schedule that training steps itself.

    Args:
        warmup_steps: optimizer steps over which the rate rises linearly.
        steps: optimizer steps of the whole run; None = not known before, which is enough for a constant rate.

    Raises:
        UserError: the schedule needs to know.
    """
    from transformers import get_scheduler

    if schedule == "constant":
        return get_scheduler("constant_with_warmup", optimizer, warmup_steps)
    if steps is None:
        raise UserError(
            f"model.lr_schedule: {schedule} needs trainer.max_steps or trainer.max_epochs (a budget of "
            "samples or tokens ends at a step that is not known before); give one, or use constant"
        )
    return get_scheduler(schedule, optimizer, warmup_steps, steps)


def total_steps(trainer: Any, updates_per_batch: int) -> int | None:
    """Optimizer steps of a whole run; None where its end is not known before."""
    if trainer.max_steps > 0:
        return int(trainer.max_steps)
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return None
    return int(len(trainer.datamodule.train_dataloader()) * trainer.max_epochs * updates_per_batch)


def apply_options(optimizer: Any, scheduler: Any, lr: float, adamw: dict[str, Any]) -> None:
    """Let the options given now win over those that a checkpoint restored; without a change this changes nothing.

    Args:
        adamw: AdamW's own options; empty where another optimizer takes its place.
    """
    scheduler.base_lrs = [lr for _ in scheduler.base_lrs]
    for group, scale in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        rate = lr * scale(scheduler.last_epoch)
        group |= {"initial_lr": lr, "lr": rate, **adamw}
