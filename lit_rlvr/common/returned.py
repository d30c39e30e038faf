"""Checks of what a user's advantage and objective return and of what they leave of their inputs, whose messages name
the function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.arguments import type_text
from lit_rlvr.common.user_code import defined_at
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import OWN_STATS, LossInputs, Stats


def require_advantages(
    advantage: Callable[..., Any], value: Any, rewards: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the advantages of an estimator if they are valid: (P, G), or (B, T) if it may give them to tokens.

    Args:
        advantage: the estimator, for the message.
        value: what it returned.
        rewards: (P, G) rewards.
        mask: (B, T) mask of the tokens in the loss; None = the estimator does not ask for tokens.

    Raises:
        UserError: `value` is not a finite floating-point tensor of such a shape on the rewards' device.
    """
    if mask is None:
        shapes = [rewards.shape]
    else:
        shapes = [rewards.shape, mask.shape]
    if (
        isinstance(value, Tensor)
        and value.shape in shapes
        and value.device == rewards.device
        and value.is_floating_point()
        and bool(value.isfinite().all())
    ):
        return value
    tokens = "" if mask is None else f" or (B, T) = {tuple(mask.shape)}"
    raise UserError(
        f"model.advantage: {defined_at(advantage)} must give finite values of shape (P, G) = {tuple(rewards.shape)}"
        f"{tokens}, a floating-point tensor on {rewards.device}; it gave {_described(value)}"
    )


def require_loss(objective: Callable[..., Any], value: Any, x: LossInputs) -> tuple[Tensor, Stats]:
    """Return the loss and statistics of an objective if they are valid.

    Raises:
        UserError: one of them is missing, the loss is not a scalar that depends on `x.logp`, a statistic is not a
            scalar, or one of them is on another device.
    """
    fault = _fault_of(value, x)
    if fault:
        raise UserError(f"model: {defined_at(objective)} must give (loss, stats); {fault}")
    return value


def require_cost(option: str, function: Callable[..., Any], cost: Any, mask: Tensor, must_be_finite: bool) -> None:
    """Refuse a cost that is not a real number for each token.

    Args:
        option: the option that the function comes from, for the message.
        function: what returned the cost.
        cost: what it returned.
        mask: (B, T) bool, the tokens that count.
        must_be_finite: refuse costs of these tokens that are not finite.

    Raises:
        UserError: the cost is no tensor of floating-point numbers of the mask's shape, or not finite.
    """
    problem = ""
    if not isinstance(cost, Tensor) or cost.shape != mask.shape or not cost.is_floating_point():
        problem = _described(cost)
    elif must_be_finite and not bool(cost[mask].isfinite().all()):
        problem = _described(cost[mask])
    if problem:
        raise UserError(
            f"{option}: {defined_at(function)} must return a cost for each token, real numbers in a tensor of shape "
            f"{tuple(mask.shape)}; it gave {problem}"
        )


def require_choice(select: Callable[..., Any], chosen: Any, everything: Tensor) -> None:
    """Refuse a choice of tokens that is not of the form of `everything` (N,), a bool for each token.

    Raises:
        UserError: it is no tensor, or has another shape, type or device.
    """
    if not isinstance(chosen, Tensor) or (chosen.shape, chosen.dtype, chosen.device) != (
        everything.shape,
        everything.dtype,
        everything.device,
    ):
        raise UserError(
            f"model: {defined_at(select)} must return {len(everything)} bools on {everything.device}, one for each "
            f"token, not {_described(chosen)}"
        )


def require_metrics(source: str, metrics: Any) -> None:
    """Refuse metrics that are not a dict of names and numbers.

    Args:
        source: what returned them, for the message.
        metrics: what it returned.

    Raises:
        UserError: says which of them is something else.
    """
    if not isinstance(metrics, dict):
        raise UserError(f"{source} must return a dict of metrics, not {type_text(metrics)}")
    for name, value in metrics.items():
        if not isinstance(value, Real) and not (_is_scalar(value) and not value.is_meta):
            raise UserError(f"{source} must return a dict of names and numbers; {name!r} is {_described(value)}")


def changed_fields(before: Any, after: Any) -> list[str]:
    """Return the names of the fields whose values differ between a dataclass of tensors and its copy."""
    fields = []
    for name, value in vars(before).items():
        if _differs(value, getattr(after, name)):
            fields.append(name)
    return fields


def _differs(before: Any, after: Any) -> bool:
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() != after.keys() or any(_differs(value, after[name]) for name, value in before.items())
    if isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape:
        return bool(((before != after) & (before == before)).any())  # NaN differs from itself
    return type(before) is not type(after) or isinstance(before, Tensor) or before != after


@contextmanager
def inputs_stay(function: Callable[..., Any], inputs: Any, name: str, option: str = "model") -> Iterator[None]:
    """Refuse a function of a loss that changes a tensor of its input in place: the rest of the loss needs it.

    Args:
        function: the function that gets the inputs.
        inputs: a dataclass with tensors.
        name: name of the parameter.
        option: the option that the function comes from, for the message.

    Raises:
        UserError: names the function and the tensors, once it has returned.
    """
    tensors = []
    for field, value in vars(inputs).items():
        if isinstance(value, Tensor):
            tensors.append((field, value, value._version))
    yield
    changed = []
    for field, value, version in tensors:
        if value._version != version:
            changed.append(f"{name}.{field}")
    if changed:
        raise UserError(
            f"{option}: {defined_at(function)} changes {', '.join(changed)} in place, and the rest of the loss needs "
            f"the values; compute on a copy: {changed[0]}.clone()"
        )


def _fault_of(value: Any, x: LossInputs) -> str:
    if not isinstance(value, tuple) or len(value) != 2:
        return f"it gave {_described(value)}"
    loss, stats = value
    device = x.logp.device
    if not _is_scalar(loss) or loss.device != device:
        return f"the loss must be a tensor on {device} with one real number, not {_described(loss)}"
    if x.logp.requires_grad and torch.is_grad_enabled() and not loss.requires_grad:
        return "the loss has no gradient: make it of x.logp, without detach"
    if not isinstance(stats, dict):
        return f"stats must be a dict of names and tensors, not {_described(stats)}"
    for name, stat in stats.items():
        if name in OWN_STATS:
            return f"every run measures {name!r} itself; give stats[{name!r}] another name"
        if not _is_scalar(stat) or stat.device != device:
            return f"stats[{name!r}] must be a tensor on {device} with one real number, not {_described(stat)}"
    return ""


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type_text(value)
    if value.is_floating_point() and not value.is_meta and not bool(value.isfinite().all()):
        return f"{int((~value.isfinite()).sum())} of {value.numel()} values that are not finite"
    return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
