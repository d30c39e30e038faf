"""The properties of losses and advantages, each measured as one number with a tolerance.

`lit-rlvr check` measures an algorithm by them, and the kit a plain function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

from lit_rlvr.common.user_code import defined_at
from lit_rlvr.conformance.batches import (
    Batch,
    Cut,
    equal_rewards,
    even_cuts,
    map_batch,
    rank_cut,
    reorder,
    shuffled_groups,
    shuffled_inside,
    to_float32,
    uneven_cuts,
)
from lit_rlvr.errors import UserError

EXACT, DIFFERENCE, SINGLE, PUBLISHED_TOLERANCE = 1e-9, 1e-5, 1e-5, 1e-6
"""Tolerances of float64, of finite differences, of float32, and of published values, whose code may add an epsilon."""
DIFFERENCE_STEP = 1e-6
"""The step of finite differences, in nats."""
HALF = 0.5
"""Tolerance of the property `rewards`; not 0, because a group may have no signal."""

ComparedTensors = dict[str, Tensor]
"""The tensors to compare, some or all of `loss` (), `advantages` (P, G) and `dlogp` (B, T)."""


@dataclass(frozen=True)
class Finding:
    """One measured property.

    Args:
        name: name of the property.
        measured: the largest error, relative to the largest value; or a number of values that are not finite.
        tolerance: the largest value of `measured` that passes.
        about: a description of the comparison.
        cause: what usually breaks the property.
    """

    name: str
    measured: float
    tolerance: float
    about: str
    cause: str = ""

    @property
    def ok(self) -> bool:
        """True if the measured value passes; never for NaN."""
        return self.measured <= self.tolerance  # never for NaN

    def __str__(self) -> str:
        status = "ok" if self.ok else "FAILED"
        if self.cause and not self.ok:
            cause = f"; usual cause: {self.cause}"
        else:
            cause = ""
        return f"{status:6}  {self.name:21} {self.measured:8.1e}  (at most {self.tolerance:.0e})  {self.about}{cause}"


@dataclass(frozen=True)
class Step:
    """One optimizer step on a batch.

    Args:
        advantages: (P, G), constant.
        loss: (logp (B, T), advantages (P, G), rows, micro-batches of the rank, ranks) -> the loss () of these rows,
            a micro-batch; the step's loss is the sum over micro-batches and ranks.
        source: the user's function, which messages name.
    """

    advantages: Tensor
    loss: Callable[[Tensor, Tensor, list[int], int, int], Tensor]
    source: Callable[..., Any]


PrepareStep = Callable[[Any], Step]
"""The step of a loss on a batch, computed afresh in each call."""
Measure = Callable[[Any], ComparedTensors]
"""The results of a loss or an advantage on a batch, computed afresh in each call."""
Estimate = Callable[[Any], Tensor]
"""The advantages (P, G) of a batch."""


# ---- measurements -----------------------------------------------------------------------------------------


def loss_and_gradient(
    step: Step, batch: Batch, cut: Cut | None = None, advantages: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the loss () and its gradient (B, T) with respect to `logp`, summed over micro-batches.

    Args:
        step: the optimizer step to run.
        batch: the batch, whose `logp` gets the gradient.
        cut: the micro-batches; None = one.
        advantages: (P, G) in place of the step's own.
    """
    if advantages is None:
        used_advantages = step.advantages
    else:
        used_advantages = advantages
    with torch.enable_grad():
        logp = batch.logp.clone().requires_grad_(True)
        ranks = cut or [[range(len(logp))]]
        parts = []
        for rank in ranks:
            for rows in rank:
                parts.append(step.loss(logp, used_advantages, list(rows), len(rank), len(ranks)))
        loss = torch.stack(parts).sum()
        if loss.requires_grad:
            gradient = torch.autograd.grad(loss, logp, allow_unused=True)[0]
        else:
            gradient = None
    if gradient is None:
        raise UserError(f"the loss of {defined_at(step.source)} does not depend on x.logp")
    return loss.detach(), gradient


def replay_step(step: Step, batch: Batch, cut: Cut | None = None) -> ComparedTensors:
    """Compute the `loss`, `advantages` and `dlogp` of a step."""
    loss, gradient = loss_and_gradient(step, batch, cut)
    return {"loss": loss, "advantages": step.advantages, "dlogp": gradient}


def error(measured: ComparedTensors, expected: ComparedTensors) -> float:
    """Return the largest difference, relative to the largest value of the same tensor.

    For a loss, which may cancel to 0, it is relative to the sum of its gradient.
    """
    worst = []
    for name, value in expected.items():
        scale = value.abs().max()
        if name == "loss" and "dlogp" in expected:
            scale = torch.maximum(scale, expected["dlogp"].abs().sum())
        worst.append(float((measured[name].to(value.dtype) - value).abs().max() / scale.clamp(min=1e-300)))
    return float(np.max(worst))


def nonfinite(tensors: ComparedTensors) -> float:
    """Count the values that are not finite."""
    return float(sum(int((~value.isfinite()).sum()) for value in tensors.values()))


# ---- properties of losses ---------------------------------------------------------------------------------


def loss_findings(prepare: PrepareStep, batch: Batch, stops_gradient: bool) -> list[Finding]:
    """Measure every property of a loss.

    Args:
        prepare: returns the optimizer step of the loss on a batch.
        batch: the batch.
        stops_gradient: the loss detaches values on purpose.
    """

    def measure(batch: Batch) -> ComparedTensors:
        return replay_step(prepare(batch), batch)

    return [
        has_its_gradient(prepare, batch, stops_gradient),
        has_the_right_direction(prepare, batch),
        *ignores_cuts(prepare, batch),
        *ignores_order(measure, batch),
        ignores_masked_tokens(measure, batch),
        ignores_padding(measure, batch),
        survives_empty_rows(measure, batch),
        survives_extreme_ratios(measure, batch),
        ignores_precision(measure, batch),
    ]


def has_its_gradient(prepare: PrepareStep, batch: Batch, stops_gradient: bool) -> Finding:
    """Compare the gradient with finite differences; measure infinity for a gradient of 0, which would prove nothing.

    Args:
        prepare: returns the optimizer step of the loss on a batch.
        batch: the batch.
        stops_gradient: the loss detaches values on purpose; they keep their values from the batch itself.
    """
    step = prepare(batch)
    _, gradient = loss_and_gradient(step, batch)
    measured = float("inf")
    if bool((gradient != 0).any()):
        masked_gradient = torch.where(batch.mask, gradient, 0.0)
        measured = error({"dlogp": masked_gradient}, {"dlogp": finite_differences(step, batch, stops_gradient)})
    return Finding(
        "gradient",
        measured,
        DIFFERENCE,
        "by autograd and by finite differences",
        "a value detached by mistake, or detached on purpose and not declared (stops_gradient)",
    )


def finite_differences(step: Step, batch: Batch, stops_gradient: bool) -> Tensor:
    """Return (B, T) central differences of the loss by each token's log-probability."""
    gradient = torch.zeros_like(batch.logp)
    frozen = FrozenDetach(stops_gradient)
    rows = list(range(len(batch.logp)))

    def loss(logp: Tensor) -> Tensor:
        with torch.no_grad(), frozen:
            return step.loss(logp, step.advantages, rows, 1, 1)

    loss(batch.logp)
    for i, t in batch.mask.nonzero().tolist():
        change = torch.zeros_like(batch.logp)
        change[i, t] = DIFFERENCE_STEP
        gradient[i, t] = (loss(batch.logp + change) - loss(batch.logp - change)) / (2 * DIFFERENCE_STEP)
    return gradient


class FrozenDetach(TorchFunctionMode):
    """A mode in which each `detach` returns its result from the first time that the mode was entered.

    Args:
        active: False has no effect.
    """

    def __init__(self, active: bool) -> None:
        super().__init__()
        self.active = active
        self.first = list[Tensor]()
        self.calls = 0
        self.runs = 0

    def __enter__(self) -> Any:
        self.calls = 0
        self.runs = self.runs + 1
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.active or func is not Tensor.detach:
            return result
        if self.runs == 1:
            self.first.append(result)
        self.calls += 1
        return self.first[self.calls - 1]


def has_the_right_direction(prepare: PrepareStep, batch: Batch) -> Finding:
    """Count completions that a step moves against the sign of their advantage.

    A loss may leave some completions where they are, as one on chosen tokens does, or all with a negative advantage;
    if it raises none with a positive one, these count. All ratios are 1, so that no clip acts. A second gradient, with
    advantages of 0, removes the terms without them.
    """
    sampled = replace(batch, old_logp=batch.logp)
    step = prepare(sampled)
    moves = []
    for advantages in (step.advantages, torch.zeros_like(step.advantages)):
        _, gradient = loss_and_gradient(step, sampled, None, advantages)
        moves.append(-torch.where(batch.mask, gradient, 0.0).sum(1))  # (B,) of the logp
    sign = step.advantages.reshape(len(batch.logp), -1).mean(1).sign()  # (B,)
    move = moves[0] - moves[1]
    along = sign * move
    threshold = EXACT * move.abs().max()
    is_wrong = along < -threshold
    if not ((sign > 0) & (along > threshold)).any():
        is_wrong |= sign > 0
    return Finding(
        "direction",
        float(is_wrong.sum()),
        0,
        "completions that a step moves against the sign of A, or all with A > 0 if it raises none",
        "a missing minus sign: a loss is minimised, -A * logp",
    )


def cut_finding(name: str, prepare: PrepareStep, batch: Batch, cuts: list[Cut], about: str, cause: str) -> Finding:
    """Compare the loss and gradient of a batch in one piece and in several.

    Args:
        name: name of the property.
        prepare: returns the optimizer step of the loss on a batch.
        batch: the batch.
        cuts: ways to cut it into micro-batches.
        about: a description of the comparison.
        cause: what usually breaks the property.
    """
    base = replay_step(prepare(batch), batch)
    errors = []
    for cut in cuts:
        errors.append(error(replay_step(prepare(batch), batch, cut), base))
    return Finding(name, float(np.max(errors)), EXACT, about, cause)


def ignores_cuts(prepare: PrepareStep, batch: Batch) -> list[Finding]:
    """Measure micro-batches of equal size, of different sizes, and ranks, each by itself."""
    rows = range(len(batch.logp))
    return [
        cut_finding(
            "micro-batches",
            prepare,
            batch,
            even_cuts(rows),
            "cut into micro-batches of equal size",
            "normalised per micro-batch instead of per optimizer step: divide by the counts of the whole step",
        ),
        cut_finding(
            "uneven micro-batches",
            prepare,
            batch,
            uneven_cuts(rows),
            "cut into micro-batches of other sizes",
            "a mean over a micro-batch's rows, divided by the number of micro-batches: right only if all have "
            "the same number of rows",
        ),
        cut_finding(
            "ranks",
            prepare,
            batch,
            [rank_cut(rows)],
            "divided over two ranks",
            "normalised per rank: divide by the counts of all ranks (times world_size where gradients are averaged)",
        ),
    ]


def ignores_order(measure: Measure, batch: Batch) -> list[Finding]:
    """Measure the order of the groups, and that of the completions in each group."""
    base = measure(batch)

    def finding(name: str, rows: list[int], about: str, cause: str) -> Finding:
        expected = dict(base)
        for key, value in base.items():
            if key != "loss":
                expected[key] = value.reshape(len(rows), -1)[rows].view_as(value)  # (P, G) or (B, T)
        return Finding(name, error(measure(reorder(batch, rows)), expected), EXACT, about, cause)

    return [
        finding(
            "order of groups",
            shuffled_groups(batch),
            "the groups in another order",
            "a statistic over the wrong dimension, a weight by place, or a state that one call leaves to the next",
        ),
        finding(
            "order of completions",
            shuffled_inside(batch),
            "each group in another order",
            "completions of different prompts compared with each other, or a weight by place",
        ),
    ]


def ignores_masked_tokens(measure: Measure, batch: Batch) -> Finding:
    """Fill masked positions with other numbers; compare the result, and require a gradient of 0 there."""
    base = measure(batch)
    other = torch.linspace(-20, 0, batch.logp.numel(), dtype=batch.logp.dtype).view_as(batch.logp)

    def filled(x: Tensor) -> Tensor:
        if x is batch.logp:
            other_values = other.flip(0)
        else:
            other_values = other
        if x.is_floating_point():
            return torch.where(batch.mask, x, other_values)
        return x

    result = measure(map_batch(batch, filled))
    no_gradient = {"dlogp": torch.where(batch.mask, base["dlogp"], 0.0)}
    worst = float(np.max([error(result, base), error(result, base | no_gradient)]))
    return Finding(
        "masked tokens",
        worst,
        EXACT,
        "other numbers where the mask is False",
        "a sum or a mean over all T positions: apply the mask first, also to counts",
    )


def ignores_padding(measure: Measure, batch: Batch) -> Finding:
    """Add masked positions at the end of every row."""
    base = measure(batch)
    result = measure(map_batch(batch, lambda x: pad(x, (0, 3))))
    worst = error(result | {"dlogp": result["dlogp"][:, : batch.logp.shape[1]]}, base)
    return Finding(
        "padding",
        worst,
        EXACT,
        "three more masked tokens at every end",
        "a normaliser that is the padded width T: count the mask, or use the configured longest completion",
    )


def survives_empty_rows(measure: Measure, batch: Batch) -> Finding:
    """Mask a whole row, as a rank without other rows has to run it."""
    mask = batch.mask.clone()
    mask[5] = False
    return Finding(
        "empty rows",
        nonfinite(measure(replace(batch, mask=mask))),
        0,
        "infinite or NaN, where a row has no token in the loss",
        "0 / 0: clamp the number of a row's tokens to 1",
    )


def survives_extreme_ratios(measure: Measure, batch: Batch) -> Finding:
    """Count nonfinite values in float32, on rows with ratios of all kinds, only tiny ones and only huge ones."""
    far = torch.tensor([-100.0, 40.0, 100.0, -40.0]).repeat(batch.logp.numel() // 4 + 1)[: batch.logp.numel()]
    far = far.view_as(batch.logp)
    far[1::3] = -100
    far[2::3] = 100
    logp = torch.where(batch.mask, -0.5 + far.clamp(max=0), 0.0)
    old = torch.where(batch.mask, -0.5 - far.clamp(min=0), 0.0)
    extreme = replace(to_float32(batch), logp=logp, old_logp=old, ref_logp=old)
    return Finding(
        "extreme ratios",
        nonfinite(measure(extreme)),
        0,
        "infinite or NaN, at ratios of e^-100 to e^100",
        "exp overflows in float32: clamp the log-ratio",
    )


def ignores_precision(measure: Measure, batch: Batch) -> Finding:
    """Compare float32 with float64."""
    return Finding(
        "precision",
        error(measure(to_float32(batch)), measure(batch)),
        SINGLE,
        "float32 and float64",
        "a difference of large numbers",
    )


# ---- properties of advantages -----------------------------------------------------------------------------


def estimator_findings(estimate: Estimate, batch: Batch) -> list[Finding]:
    """Measure every property of an advantage."""

    def measure(batch: Batch) -> ComparedTensors:
        return {"advantages": estimate(batch)}

    return [
        rewards_what_is_right(estimate, batch),
        *ignores_order(measure, batch),
        flat_finding(measure(equal_rewards(batch))),
        ignores_precision(measure, batch),
    ]


def rewards_what_is_right(estimate: Estimate, batch: Batch) -> Finding:
    """Swap right and wrong; measure the share of completions whose advantage does not rise when they are right."""
    swapped = replace(batch, rewards=1 - batch.rewards, correct=1 - batch.correct)
    gain = (estimate(batch) - estimate(swapped)) * (2 * batch.correct - 1)  # (P, G)
    return Finding(
        "rewards",
        float((gain <= EXACT).double().mean()),
        HALF,
        "share of completions whose advantage is no higher if they are right instead of wrong",
        "a wrong sign",
    )


def leaves_no_residue(estimate: Estimate, batch: Batch) -> Finding:
    """Give all completions a reward of 0.3, whose sum is rounded in float32; measure the largest advantage where it is
    0 for a reward of 0.5, whose sum is exact."""
    prompts, size = batch.rewards.shape
    # Rows stay as they are; the groups are as many as they were large, because a sum of four equal numbers is exact.
    wide = map_batch(to_float32(batch), groups=lambda x: x.reshape(size, prompts))
    right = torch.ones_like(wide.correct)
    rounded = estimate(replace(wide, rewards=torch.full_like(wide.rewards, 0.3), correct=right))
    exact = estimate(replace(wide, rewards=torch.full_like(wide.rewards, 0.5), correct=right))
    return Finding(
        "rounding",
        float(torch.where(exact == 0, rounded, 0.0).abs().max()),
        SINGLE,
        "an advantage although all rewards are 0.3",
        "r - mean(r) is not exactly 0: use advantages.base.centered",
    )


def flat_finding(tensors: ComparedTensors) -> Finding:
    """Count nonfinite values of the batch of `equal_rewards`."""
    return Finding(
        "equal rewards",
        nonfinite(tensors),
        0,
        "infinite or NaN, where a group's rewards are equal",
        "a standard deviation of 0: add an epsilon",
    )
