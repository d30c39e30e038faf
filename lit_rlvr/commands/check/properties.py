"""The properties of algorithms and advantages, each measured as one number with a tolerance.

The batch for it is made at the end of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

from lit_rlvr.advantages import Advantage, AdvantageFunction, GroupBatch, resolve_advantage
from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.commands.parity.replay import FrozenBatch, frozen_inputs, loss_and_gradient, read_batch, replay_one
from lit_rlvr.common.returned import require_advantages
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.objectives import LossInputs

EXACT, DIFFERENCE, SINGLE = 1e-9, 1e-5, 1e-5
"""Tolerances of float64, of finite differences and of float32, relative to the largest value."""
DIFFERENCE_STEP = 1e-6
"""The step of finite differences, in nats."""
HALF, GAIN = 0.5, "share of completions whose advantage is no higher if they are right instead of wrong"
"""Tolerance and description of the property `rewards`; not 0, because a group may have no signal."""

ComparedTensors = dict[str, Tensor]
"""The tensors to compare, some or all of `loss` (), `advantages` (P, G) and `dlogp` (B, T)."""


@dataclass(frozen=True)
class Finding:
    """One measured property.

    Args:
        measured: the largest error, relative to the largest value; or a number of values that are not finite.
        tolerance: the largest value of `measured` that passes.
        about: a description of the comparison.
    """

    name: str
    measured: float
    tolerance: float
    about: str

    @property
    def ok(self) -> bool:
        return self.measured <= self.tolerance  # never for NaN

    def __str__(self) -> str:
        status = "ok" if self.ok else "FAILED"
        return f"{status:6}  {self.name:21} {self.measured:8.1e}  (at most {self.tolerance:.0e})  {self.about}"


def check_algorithm(algorithm: RLVRModule) -> list[Finding]:
    """Measure a loss with its advantage; do not train or change `algorithm`.

    A loss must not have a gradient where the advantage is 0, because training skips such completions.

    Raises:
        UserError: the loss has no gradient, or the class returns no loss.
    """
    batch = made_batch()
    base = replay_one(batch, deepcopy(algorithm))
    groups, inside = shuffled_groups(), shuffled_inside()
    return [
        Finding("gradient", _gradient(algorithm, batch), DIFFERENCE, "by autograd and by finite differences"),
        Finding("direction", _direction(algorithm, batch), 0, "completions that a step moves against the sign of A"),
        Finding("rewards", _rewards(lambda group: deepcopy(algorithm).estimate(group)[0], batch), HALF, GAIN),
        Finding("micro-batches", _microbatches(algorithm, batch, base), EXACT, "loss and gradient, cut in other ways"),
        Finding("order of groups", _order(algorithm, batch, base, groups), EXACT, "the groups in another order"),
        Finding("order of completions", _order(algorithm, batch, base, inside), EXACT, "each group in another order"),
        Finding("masked tokens", _masked(algorithm, batch, base), EXACT, "other numbers where the mask is False"),
        Finding("padding", _padding(algorithm, batch, base), EXACT, "three more masked tokens at every end"),
        Finding("empty rows", _empty(algorithm, batch), 0, "infinite or NaN, where a row has no token in the loss"),
        Finding("zero advantages", _zero_advantages(algorithm, batch), 0, "gradient where the advantage is 0"),
        Finding("equal rewards", _flat(algorithm, batch), 0, "infinite or NaN, where a group's rewards are equal"),
        Finding("ratio", _ratio(algorithm, batch), 0, "1 if has_ratio and the loss disagree on the use of x.old"),
        Finding("extreme ratios", _extreme(algorithm, batch), 0, "infinite or NaN, at ratios of e^-100 to e^100"),
        Finding("precision", _precision(algorithm, batch, base), SINGLE, "float32 and float64"),
    ]  # fmt: skip


def check_advantage(advantage: AdvantageFunction | str) -> list[Finding]:
    """Measure an estimator: a name, an `Advantage`, or a function of a `GroupBatch`.

    Raises:
        UserError: there is no such estimator, or it returns no (P, G) tensor.
    """
    estimator = resolve_advantage(advantage)
    batch = made_batch()

    def result(batch: FrozenBatch) -> ComparedTensors:
        return {"advantages": _estimate(estimator, batch.group)}

    base = result(batch)

    def reordering_error(rows: Sequence[int]) -> float:
        expected = base["advantages"].flatten()[rows].view(BATCH_PROMPTS, SIZE)
        return error(result(reorder(batch, rows)), {"advantages": expected})

    group = deepcopy(batch.group)
    deepcopy(estimator)(group)
    flat = nonfinite(result(equal_rewards(batch)))
    before = {k: v for k, v in vars(batch.group).items() if isinstance(v, Tensor) and v.is_floating_point()}
    return [
        Finding("rewards", _rewards(lambda group: _estimate(estimator, group), batch), HALF, GAIN),
        Finding("order of groups", reordering_error(shuffled_groups()), EXACT, "the groups in another order"),
        Finding("order of completions", reordering_error(shuffled_inside()), EXACT, "each group in another order"),
        Finding("equal rewards", flat, 0, "infinite or NaN, where a group's rewards are equal"),
        Finding("precision", error(result(to_float32(batch)), base), SINGLE, "float32 and float64"),
        Finding("input", error(vars(group), before), 0, "the rewards that it was given, before and after"),
    ]


# ---- measurements ----------------------------------------------------------------------------------------------


def error(found: ComparedTensors, expected: ComparedTensors) -> float:
    """Return the largest difference, relative to the largest value of the same tensor.

    For a loss, which may cancel to 0, it is relative to the sum of its gradient.
    """
    worst = []
    for name, value in expected.items():
        scale = value.abs().max()
        if name == "loss" and "dlogp" in expected:
            scale = torch.maximum(scale, expected["dlogp"].abs().sum())
        worst.append(float((found[name].to(value.dtype) - value).abs().max() / scale.clamp(min=1e-300)))
    return float(np.max(worst))


def nonfinite(found: ComparedTensors) -> float:
    """Count the values that are not finite."""
    return float(sum(int((~value.isfinite()).sum()) for value in found.values()))


def shuffled_groups() -> list[int]:
    """Return rows with the groups in another order, in which none keeps its place."""
    return [p * SIZE + g for p in (*range(2, BATCH_PROMPTS), 1, 0) for g in range(SIZE)]


def shuffled_inside() -> list[int]:
    """Return rows with each group's completions in an order of its own, in which none keeps its place."""
    return [p * SIZE + (g + 1 + p % (SIZE - 1)) % SIZE for p in range(BATCH_PROMPTS) for g in range(SIZE)]


def equal_rewards(batch: FrozenBatch) -> FrozenBatch:
    """Return the batch with all completions right or all wrong in every group."""
    right = (
        (torch.arange(BATCH_PROMPTS)[:, None] % 2).expand(BATCH_PROMPTS, SIZE).to(batch.logp.dtype).clone()
    )  # (P, G)
    return replace(batch, group=replace(batch.group, rewards=right, correct=right.clone()))


def _gradient(algorithm: RLVRModule, batch: FrozenBatch) -> float:
    """Compare the gradient with finite differences; return infinity for a gradient of 0, which would prove nothing."""
    own = deepcopy(algorithm)
    advantages, _ = own.estimate(batch.group)
    _, gradient = loss_and_gradient(batch, own, advantages)
    if not bool((gradient != 0).any()):
        return float("inf")
    found = torch.where(batch.mask, gradient, 0.0)
    return error({"dlogp": found}, {"dlogp": finite_differences(own, batch, advantages)})


def _direction(algorithm: RLVRModule, batch: FrozenBatch) -> float:
    """Count completions that a step moves against the sign of their advantage.

    All ratios are 1, so that no clip acts. A second gradient, with advantages of 0, removes the terms without them.
    """
    own, sampled = deepcopy(algorithm), replace(batch, old=batch.logp)
    advantages, _ = own.estimate(batch.group)
    moves = [
        -torch.where(batch.mask, loss_and_gradient(sampled, own, given)[1], 0.0).sum(1)  # (B,) of the log-probability
        for given in (advantages, torch.zeros_like(advantages))
    ]
    move, sign = moves[0] - moves[1], advantages.flatten().sign()
    still = EXACT * move.abs().max()
    return float(((sign > 0) & (move <= still) | (sign < 0) & (move > still)).sum())


def _rewards(estimate: AdvantageFunction, batch: FrozenBatch) -> float:
    """Swap right and wrong; return the share of completions whose advantage does not rise when they are right."""
    group = batch.group
    swapped = replace(group, rewards=1 - group.rewards, correct=1 - group.correct)
    gain = (estimate(group) - estimate(swapped)) * (2 * group.correct - 1)  # (P, G)
    return float((gain <= EXACT).double().mean())


def finite_differences(algorithm: RLVRModule, batch: FrozenBatch, advantages: Tensor) -> Tensor:
    """Return (B, T) central differences of the loss by each token's log-probability.

    If the class sets `stops_gradient`, detached tensors keep their values from the batch itself.
    """
    gradient = torch.zeros_like(batch.logp)
    frozen = FrozenDetach(algorithm.stops_gradient)
    whole = frozen_inputs(batch, algorithm, batch.logp, advantages)

    def loss(x: LossInputs) -> Tensor:
        with torch.no_grad(), frozen:
            return algorithm.loss(x)[0]

    loss(whole)
    for i, t in batch.mask.nonzero().tolist():
        step = torch.zeros_like(batch.logp)
        step[i, t] = DIFFERENCE_STEP
        up, down = (loss(replace(whole, logp=batch.logp + sign * step)) for sign in (1, -1))
        gradient[i, t] = (up - down) / (2 * DIFFERENCE_STEP)
    return gradient


class FrozenDetach(TorchFunctionMode):
    """A mode in which each `detach` returns its result from the first time that the mode was entered.

    Args:
        active: False has no effect.
    """

    def __init__(self, active: bool) -> None:
        super().__init__()
        self.active, self.first, self.calls, self.runs = active, list[Tensor](), 0, 0

    def __enter__(self) -> Any:
        self.calls, self.runs = 0, self.runs + 1
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.active or func is not Tensor.detach:
            return result
        if self.runs == 1:
            self.first.append(result)
        self.calls += 1
        return self.first[self.calls - 1]


def _microbatches(algorithm: RLVRModule, batch: FrozenBatch, base: ComparedTensors) -> float:
    """Split the batch into single rows, pairs, uneven parts, and parts that mix groups; compare with the whole."""
    rows = list(range(len(batch.logp)))
    singles, pairs = [[i] for i in rows], [rows[k : k + 2] for k in rows[::2]]
    cuts = (singles, pairs, [rows[:7], rows[7:]], [rows[k::5] for k in range(5)])
    return float(np.max([error(replay_one(batch, deepcopy(algorithm), parts), base) for parts in cuts]))


def _order(algorithm: RLVRModule, batch: FrozenBatch, base: ComparedTensors, rows: Sequence[int]) -> float:
    advantages = base["advantages"].flatten()[rows].view(BATCH_PROMPTS, SIZE)
    expected = base | {"dlogp": base["dlogp"][rows], "advantages": advantages}
    return error(replay_one(reorder(batch, rows), deepcopy(algorithm)), expected)


def _masked(algorithm: RLVRModule, batch: FrozenBatch, base: ComparedTensors) -> float:
    """Fill masked positions with other numbers; compare the result, and require a gradient of 0 there."""
    other = torch.linspace(-20, 0, batch.logp.numel(), dtype=batch.logp.dtype).view_as(batch.logp)

    def filled(x: Tensor) -> Tensor:
        return (
            x if not x.is_floating_point() else torch.where(batch.mask, x, other.flip(0) if x is batch.logp else other)
        )

    found = replay_one(map_batch(batch, filled), deepcopy(algorithm))
    no_gradient = {"dlogp": torch.where(batch.mask, base["dlogp"], 0.0)}
    return float(np.max([error(found, base), error(found, base | no_gradient)]))


def _padding(algorithm: RLVRModule, batch: FrozenBatch, base: ComparedTensors) -> float:
    found = replay_one(map_batch(batch, lambda x: pad(x, (0, 3))), deepcopy(algorithm))
    return error(found | {"dlogp": found["dlogp"][:, : batch.logp.shape[1]]}, base)


def _empty(algorithm: RLVRModule, batch: FrozenBatch) -> float:
    """Mask a whole row, as a rank without other rows has to run it."""
    mask = batch.mask.clone()
    mask[5] = False
    return nonfinite(replay_one(replace(batch, mask=mask), deepcopy(algorithm)))


def _zero_advantages(algorithm: RLVRModule, batch: FrozenBatch) -> float:
    """Compare the gradient of rows with advantage 0 with 0, without the KL and entropy terms; 0 for a class that says
    that it runs such rows."""
    own = deepcopy(algorithm)
    own.kl_coef = own.entropy_coef = 0.0
    if own.runs_all_rows:
        return 0.0
    advantages, _ = own.estimate(batch.group)
    live = torch.arange(len(batch.logp)) % 2 == 0  # (B,)
    _, gradient = loss_and_gradient(batch, own, advantages * live.view_as(advantages))
    return error({"dlogp": gradient}, {"dlogp": torch.where(live[:, None], gradient, 0.0)})


def _flat(algorithm: RLVRModule, batch: FrozenBatch) -> float:
    own, flat = deepcopy(algorithm), equal_rewards(batch)
    own.observe(flat.group)
    advantages = own.advantage(flat.group)
    loss, gradient = loss_and_gradient(flat, own, advantages)
    return nonfinite({"loss": loss, "dlogp": gradient, "advantages": advantages})


def _ratio(algorithm: RLVRModule, batch: FrozenBatch) -> float:
    """Return 0 if the gradient depends on the log-probabilities at rollout time just if `has_ratio` says so, else 1."""
    own = deepcopy(algorithm)
    own.kl_coef = own.entropy_coef = 0.0
    advantages, _ = own.estimate(batch.group)
    logp = batch.logp.clone().requires_grad_(True)
    x = frozen_inputs(batch, own, logp, advantages)
    gradients = [
        torch.autograd.grad(own.loss(replace(x, old=x.old - shift, rollout=x.rollout - shift))[0], logp)[0]
        for shift in (0, 0.01)
    ]
    return float(own.has_ratio == torch.equal(*gradients))


def _extreme(algorithm: RLVRModule, batch: FrozenBatch) -> float:
    """Count nonfinite values in float32, on rows with ratios of all kinds, only tiny ones and only huge ones."""
    far = torch.tensor([-100.0, 40.0, 100.0, -40.0]).repeat(batch.logp.numel() // 4 + 1)[: batch.logp.numel()]
    far = far.view_as(batch.logp)
    far[1::3], far[2::3] = -100, 100
    single = to_float32(batch)
    logp = torch.where(batch.mask, -0.5 + far.clamp(max=0), 0.0)
    old = torch.where(batch.mask, -0.5 - far.clamp(min=0), 0.0)
    return nonfinite(replay_one(replace(single, logp=logp, old=old, ref=old), deepcopy(algorithm)))


def _precision(algorithm: RLVRModule, batch: FrozenBatch, base: ComparedTensors) -> float:
    return error(replay_one(to_float32(batch), deepcopy(algorithm)), base)


def _estimate(advantage: Advantage, group: GroupBatch) -> Tensor:
    """Return the advantages (P, G); leave nonfinite ones to the property that counts them."""
    value: Any = deepcopy(advantage)(deepcopy(group))
    require_advantages(advantage, value.nan_to_num() if isinstance(value, Tensor) else value, group.rewards)
    return value


BATCH_PROMPTS, SIZE, BATCH_WIDTH, LONGEST = 6, 4, 9, 12
"""P, G, T and T_max of the batch."""


def unchanged(x: Tensor) -> Tensor:
    return x


def made_batch() -> FrozenBatch:
    """Make six groups of four completions in float64.

    Each group has right and wrong completions, with rewards in [0, 1]. Completions have 1 to 9 tokens, some with gaps
    like those of observations. Ratios are near and far from 1.
    """
    rng = np.random.default_rng(derive_seed("check"))
    rows = BATCH_PROMPTS * SIZE
    mask = np.arange(BATCH_WIDTH) < rng.integers(1, BATCH_WIDTH + 1, rows)[:, None]
    mask[:, 2] &= np.arange(rows) % 3 > 0  # gaps
    correct = np.stack([rng.permutation(np.arange(SIZE) < 1 + p % (SIZE - 1)) for p in range(BATCH_PROMPTS)]).astype(
        float
    )
    logp = -rng.exponential(1.0, (rows, BATCH_WIDTH))
    spread = np.array([1e-4, 1e-3, 0.05, 0.5])[np.arange(rows) % 4]  # of the log-ratios
    away = rng.normal(size=logp.shape)
    away += 0.1 * np.sign(away)  # not at a clip of 0, where there is no derivative
    batch = read_batch(
        {
            "logp": logp,
            "old_logp": logp + spread[:, None] * away,
            "ref_logp": logp + 0.3 * rng.normal(size=logp.shape),
            "mask": mask,
            "rewards": 0.8 * correct + 0.2 * rng.random(correct.shape),
            "correct": correct,
            "reference_rewards": rng.integers(0, 2, correct.shape).astype(float),
            "max_completion_length": np.array(LONGEST),
        }
    )
    return replace(batch, entropy=torch.from_numpy(rng.uniform(0, 3, logp.shape)))


def map_batch(
    batch: FrozenBatch, tokens: Callable[[Tensor], Tensor] = unchanged, groups: Callable[[Tensor], Tensor] = unchanged
) -> FrozenBatch:
    """Apply functions to the arrays of a batch.

    Args:
        tokens: (B, T) -> (B, T'), for log-probabilities, entropies and the mask.
        groups: (P, G) -> (P, G), for the arrays of the groups.
    """
    arrays: dict[str, Any] = {name: tokens(getattr(batch, name)) for name in ("logp", "old", "ref", "mask", "entropy")}
    given: dict[str, Any] = {
        name: (tokens if name in ("mask", "turns") else groups)(value)
        for name, value in vars(batch.group).items()
        if value is not None
    }
    return replace(batch, **arrays, group=GroupBatch(**given))


def reorder(batch: FrozenBatch, rows: Sequence[int]) -> FrozenBatch:
    """Return the batch with completion `rows[i]` in row i; each group stays together."""
    return map_batch(batch, lambda x: x[list(rows)], lambda x: x.flatten()[list(rows)].view_as(x))


def to_float32(batch: FrozenBatch) -> FrozenBatch:
    """Return the batch in float32."""
    return map_batch(batch, *[lambda x: x.float() if x.is_floating_point() else x] * 2)
