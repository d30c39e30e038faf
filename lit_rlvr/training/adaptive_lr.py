"""A learning rate that adapts itself, and the measurements of a step that it follows."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from math import exp, inf, isnan, nan, sqrt
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.distributed.collectives import all_sum, gather_objects, index_tensor, rank
from lit_rlvr.distributed.sharding import has_shards, own_shard
from lit_rlvr.objectives import kl_estimate
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import more_bits_than_autocast
from lit_rlvr.training.optimizer import all_parameters, set_lr, steps_per_iteration
from lit_rlvr.training.random_step import RandomStep
from lit_rlvr.training.step.memory import TokenBudget, retry_smaller
from lit_rlvr.training.step.microbatches import logprobs_in_microbatches
from lit_rlvr.training.step.plan import StepPlan
from lit_rlvr.types import Rollout


class AdaptiveLR:
    """Adapts the learning rate of an optimizer until its steps are neither too short nor too long.

    If the gradient of fresh completions still points along the step before (a cosine above 0), that step was too short;
    if it points back, the step was too long, as it is when it follows the noise of few completions. So the rate is
    multiplied by `exp(GAIN x cosine)` (hypergradient descent, Baydin et al. 2018, arXiv 1703.04782, with a cosine in
    place of the product). The mean divergence of the steps bounds the rate from above and below, which finds its order
    of magnitude in few steps from any start.

    Args:
        max_kl: the largest mean divergence of a step, in nats per token.
        lr: the first learning rate.
        bounds: the lowest and the highest learning rate.
    """

    GAIN = 2.0
    """The factor of the cosine: the rate is found in about ten steps, and then varies by about 30 %."""
    RANGE = 50.0
    """Ratio of the largest mean divergence to the smallest."""
    DECAY = 0.8
    """Weight of the earlier steps in the mean divergence."""
    DOWN, UP = 1.5, 2.0
    """Largest factors by which a step lowers and raises the rate."""

    def __init__(self, max_kl: float, lr: float, bounds: tuple[float, float]) -> None:
        self.max_kl = max_kl
        self.lr = lr
        self.bounds = bounds
        # of the average of c, where the divergence of a step is c x lr^2
        self.total = 0.0
        self.weight = 0.0

    @classmethod
    def of(cls, module: Any) -> AdaptiveLR:
        """Return the rate of an `RLVRModule` with `lr: auto`, before its first step."""
        usual = usual_lr(module.policy.model.config.get_text_config().hidden_size, module.lora is not None)
        first = (usual if module.lr.start is None else module.lr.start) / 10
        if module.optim.optimizer is None:
            middle = usual
        else:
            middle = first * 10
        return cls(
            module.lr.max_kl / steps_per_iteration(module), first, (min(first, middle / 150), max(first, middle * 6))
        )

    def adapt(self, kl: float, cosine: float, optimizer: Any, schedule: Any) -> None:
        """Set the learning rate of the next step, which the schedule's factor multiplies.

        Args:
            kl: divergence of the last step, in nats per token; NaN = no token was trained on, and the rate stays.
            cosine: of its gradient and the step before it, see `step_cosine`; NaN = unknown.
            optimizer: has taken the step.
            schedule: has not been stepped yet.
        """
        factor = schedule.lr_lambdas[0](schedule.last_epoch)
        if isnan(kl) or self.lr * factor == 0:
            return
        self.total = self.DECAY * self.total + (1 - self.DECAY) * kl / (self.lr * factor) ** 2
        self.weight = self.DECAY * self.weight + (1 - self.DECAY)
        if self.total > 0:
            most = sqrt(self.max_kl * self.weight / self.total) / self.lr
        else:
            most = inf
        change = 1.0 if isnan(cosine) else exp(self.GAIN * cosine * factor)  # a decaying schedule is not fought
        change = min(max(change, most / sqrt(self.RANGE)), most)
        change = min(max(change, 1 / self.DOWN), self.UP)
        self.lr = min(max(self.lr * change, self.bounds[0]), self.bounds[1])
        set_lr(optimizer, schedule, self.lr)

    def state_dict(self) -> dict[str, float]:
        return {"lr": self.lr, "total": self.total, "weight": self.weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.lr = state["lr"]
        self.total = state["total"]
        self.weight = state["weight"]


def usual_lr(hidden_size: int, lora: bool) -> float:
    """Return a learning rate of AdamW at which models of a hidden size learn: 2e-4 at 64, 2e-5 at 576.

    The best rate falls with the width (muP, arXiv 2203.03466).

    Args:
        hidden_size: of the language model.
        lora: adapters are trained instead of the weights.
    """
    return 1e-2 / hidden_size * (10 if lora else 1)


@dataclass(eq=False)
class AdaptiveStep:
    """Takes an optimizer step, measures how far it moves the policy, and adapts the learning rate.

    Args:
        adaptive_lr: the learning rate.
        policy: the trained policy.
        optimizer: steps the policy.
        schedule: the schedule of the learning rate, not stepped yet.
        budget: the most input tokens in a micro-batch of a measurement; a copy of training's, whose micro-batches stay
            as they are when a measurement runs out of memory.
    """

    adaptive_lr: AdaptiveLR
    policy: Policy
    optimizer: Any
    schedule: Any
    budget: TokenBudget

    def __post_init__(self) -> None:
        self.sharded = has_shards(self.policy.parameters())

    def take(self, plan: StepPlan) -> dict[str, float]:
        """Step the optimizer, free the gradients' memory, and adapt the learning rate; return what was measured.

        Collective: call it on every rank.
        """
        cosine = step_cosine(self.optimizer, self.sharded)
        rows = measured_rows(plan, one_in=32 if self.measures_in_float32 else 8)
        before = self.measured_logprobs(plan, rows)
        random_step = RandomStep(self.optimizer) if self.subtracts_rounding else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        after = self.measured_logprobs(plan, rows)
        kl = mean_kl(before, after)
        if random_step is not None:
            with random_step.taken(derive_seed("random step", self.schedule.last_epoch, rank())):
                rounding = mean_kl(after, self.measured_logprobs(plan, rows))
            kl = kl if isnan(kl) else max(kl - rounding, 0.0)
        self.adaptive_lr.adapt(kl, cosine, self.optimizer, self.schedule)
        metrics = {}
        if not isnan(kl):
            metrics["train/kl_step"] = kl
        if not isnan(cosine):
            metrics["train/step_cosine"] = cosine
        return metrics

    @property
    def measures_in_float32(self) -> bool:
        """True if training computes in 16 bits, and this rank has all weights in float32."""
        device = self.policy.device.type
        has_all_weights = not self.sharded and all(p.dtype == torch.float32 for p in self.policy.parameters())
        return has_all_weights and torch.is_autocast_enabled(device)

    @property
    def subtracts_rounding(self) -> bool:
        """True if the rounding of activations adds to the measured divergence, so that it has to be subtracted."""
        return torch.is_autocast_enabled(self.policy.device.type) and not self.measures_in_float32

    def measured_logprobs(self, plan: StepPlan, rows: list[int]) -> Tensor:
        """Return the log-probabilities (N,) of some rows' tokens in the loss, always by the same operations.

        In bfloat16 the smallest step changes the rounding of all activations, which alone is a divergence of 1e-3 to
        5e-3 nats per token. Collective: call it on every rank.
        """
        with more_bits_than_autocast(self.policy.device) if self.measures_in_float32 else nullcontext():
            logp = self._logprobs(plan.prepared.rollout, rows)  # (B, T)
        index = index_tensor(rows, logp.device)
        return logp[index][plan.mask[index]]

    def _logprobs(self, rollout: Rollout, rows: list[int]) -> Tensor:
        def score() -> Tensor:
            return logprobs_in_microbatches(self.policy, rollout, rows, self.budget.tokens, self.sharded)[0]

        return retry_smaller(self.budget, rollout, score)


def step_cosine(optimizer: Any, sharded: bool) -> float:
    """Return the cosine of the gradient and the direction of AdamW's last step, downhill positive.

    It is over every fourth parameter; NaN before the second step, without a gradient, or for an optimizer without
    AdamW's moments. Collective if the weights are sharded: call it on every rank.

    Args:
        optimizer: before its step.
        sharded: whether each rank has a part of each parameter.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for parameter in all_parameters(optimizer)[::4]:
        state = optimizer.state.get(parameter, {})
        if parameter.grad is not None and "exp_avg_sq" in state:
            gradient, mean, square = map(own_shard, (parameter.grad, state["exp_avg"], state["exp_avg_sq"]))
            step = mean / (square.sqrt() + 1e-8)
            products = (gradient * step, gradient.square(), step.square())
            sums = sums.to(gradient.device) + torch.stack([product.sum().double() for product in products])
    product, gradients, steps = (all_sum(sums) if sharded else sums).tolist()
    if gradients * steps > 0:
        return product / sqrt(gradients * steps)
    return nan


MEASURED_GROUPS = 4
"""Most groups, of all ranks, on which the divergence of a step is estimated."""


def measured_rows(plan: StepPlan, one_in: int) -> list[int]:
    """Choose the rows of a step on which its divergence is estimated; return those of this rank.

    Running one in eight of all rows forward before and after the step costs about 8 % of it.
    Collective: call it on every rank.

    Args:
        plan: the step.
        one_in: choose one in this many of all ranks' rows, from at most `MEASURED_GROUPS` groups.
    """
    rollout = plan.prepared.rollout
    rows = sorted(chain.from_iterable(plan.microbatches[: plan.num_counted]))  # this rank's
    repeats = rollout.repeats or [0] * len(rollout.prompts)
    members_by_key: dict[int, list[int]] = {}
    for i in rows:
        p = i // rollout.group_size
        members_by_key.setdefault(derive_seed("measured", rollout.prompts[p].sample.id, repeats[p]), []).append(i)
    groups = []
    for members_of_rank in gather_objects(members_by_key):
        for key, members in members_of_rank.items():
            groups.append((key, len(members)))
    groups.sort()
    chosen = set()
    for key, _ in groups[: min(MEASURED_GROUPS, max(1, len(groups) // one_in))]:
        chosen.add(key)
    most = max(1, sum(size for _, size in groups) // one_in)  # of a group
    return sorted(i for key, members in members_by_key.items() if key in chosen for i in members[:most])


def mean_kl(before: Tensor, after: Tensor) -> float:
    """Estimate (k3) the KL divergence of a policy from the one before, in nats per token; NaN without any token.

    Collective: call it on every rank.

    Args:
        before: (N,) log-probabilities of this rank's tokens under the earlier policy.
        after: (N,) under the later one.
    """
    kl = kl_estimate(before, after, torch.ones_like(before, dtype=torch.bool))
    total, tokens = all_sum(torch.tensor([float(kl.double().sum()), float(len(kl))], dtype=torch.float64)).tolist()
    if tokens:
        return total / tokens
    return nan
