"""Checks the return values of a user's advantage and objective, so that the error message can name the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.errors import UserError, defined_at, kind_of
from lit_rlvr.objectives import LossInputs, Stats


def check_advantages(advantage: Callable[..., Any], found: Any, rewards: Tensor) -> Tensor:
    """Check the advantages (P, G) that an estimator returned.

    Raises:
        UserError: they are not a finite floating-point tensor of the rewards' shape and device.
    """
    if (
        isinstance(found, Tensor)
        and (found.shape, found.device) == (rewards.shape, rewards.device)
        and found.is_floating_point()
        and bool(found.isfinite().all())
    ):
        return found
    raise UserError(
        f"model.advantage: {defined_at(advantage)} must give finite values of shape (P, G) = {tuple(rewards.shape)}, "
        f"a floating-point tensor on {rewards.device}; it gave {_described(found)}"
    )


def check_objective(objective: Callable[..., Any], found: Any, x: LossInputs) -> tuple[Tensor, Stats]:
    """Check the loss and statistics that an objective returned.

    Raises:
        UserError: one of them is missing, the loss is not a scalar that depends on `x.logp`, or a statistic is not a
            scalar.
    """
    wrong = _wrong_with(found, x)
    if wrong:
        raise UserError(f"model: {defined_at(objective)} must give (loss, stats); {wrong}")
    loss, stats = found
    return loss, stats


def _wrong_with(found: Any, x: LossInputs) -> str:
    if not isinstance(found, tuple) or len(found) != 2:
        return f"it gave {_described(found)}"
    loss, stats = found
    if not _is_scalar(loss):
        return f"the loss must be a tensor with one real number, not {_described(loss)}"
    if x.logp.requires_grad and torch.is_grad_enabled() and not loss.requires_grad:
        return "the loss has no gradient: make it of x.logp, without detach"
    if not isinstance(stats, dict):
        return f"stats must be a dict of names and tensors, not {_described(stats)}"
    for name, value in stats.items():
        if not isinstance(name, str):
            return f"the names in stats must be text, not {name!r}"
        if not _is_scalar(value):
            return f"stats[{name!r}] must be a tensor with one real number, not {_described(value)}"
    return ""


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return kind_of(value)
    if value.is_floating_point() and not bool(value.isfinite().all()):
        return f"{int((~value.isfinite()).sum())} of {value.numel()} values that are not finite"
    return f"{value.dtype} of shape {tuple(value.shape)}"
