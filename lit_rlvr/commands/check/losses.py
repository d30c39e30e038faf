"""The properties of algorithms and advantages: those that any loss has, and those that our classes declare."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.advantages import AdvantageFunction, NoAdvantage, resolve_advantage
from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.commands.check.replay import FrozenBatch, algorithm_step, frozen_inputs, read_batch
from lit_rlvr.common.returned import require_advantages
from lit_rlvr.conformance import Finding, Step, batches, loss_and_gradient, properties
from lit_rlvr.conformance.functions import has_published_values


def check_algorithm(algorithm: RLVRModule, expect: str | None = None) -> list[Finding]:
    """Measure a loss with its advantage; do not train or change `algorithm`.

    A loss must not have a gradient where the advantage is 0, because training skips such completions. One whose
    advantages come from a teacher alone is measured with those of `grpo`.

    Args:
        algorithm: the loss.
        expect: the published loss whose values and gradients it must have; None = compare with none.

    Raises:
        UserError: the loss has no gradient, or the class returns no loss.
    """
    batch = made_batch()
    if isinstance(algorithm.advantage, NoAdvantage):
        algorithm = deepcopy(algorithm)
        algorithm.advantage = resolve_advantage("grpo")

    def prepare(batch: batches.Batch) -> Step:
        return algorithm_step(FrozenBatch(**vars(batch)), deepcopy(algorithm), batch.advantages)

    def estimate(batch: FrozenBatch) -> Tensor:
        return deepcopy(algorithm).estimate(batch.groups)[0]

    flat = batches.equal_rewards(batch)
    observer = deepcopy(algorithm)
    observer.observe(flat.groups)
    return [
        *([has_published_values(prepare, expect, name) for name in batches.BATCHES] if expect else []),
        *properties.loss_findings(prepare, batch, algorithm.stops_gradient),
        properties.rewards_what_is_right(estimate, batch),
        Finding("zero advantages", _zero_advantages(algorithm, batch), 0, "gradient where the advantage is 0"),
        properties.flat_finding(
            properties.replay_step(algorithm_step(flat, observer, observer.advantage(flat.groups)), flat)
        ),
        Finding("ratio", _ratio(algorithm, batch), 0, "1 if has_ratio and the loss disagree on a ratio to older logp"),
    ]


def check_advantage(advantage: AdvantageFunction | str) -> list[Finding]:
    """Measure an estimator: a name, an `Advantage`, or a function of a `GroupBatch`.

    Raises:
        UserError: there is no such estimator, or it returns no (P, G) tensor.
    """
    estimator = resolve_advantage(advantage)
    batch = made_batch()

    def estimate(batch: FrozenBatch) -> Tensor:
        groups = deepcopy(batch.groups)
        mask = None
        if estimator.needs_tokens:
            assert groups.mask is not None and groups.turns is not None, "the made batch has tokens"
            mask = groups.mask
            groups.states = groups.turns.clamp(min=0)  # as if the number of the turn were all that is shown
        value: Any = deepcopy(estimator)(groups)
        finite = value.nan_to_num() if isinstance(value, Tensor) else value  # the properties count the others
        require_advantages(estimator, finite, groups.rewards, mask)
        if mask is None or value.shape == groups.rewards.shape:
            return value
        means = (value * mask).sum(1) / mask.sum(1).clamp(min=1)  # (B,): the properties are of completions
        return means.reshape(groups.rewards.shape)

    return [*properties.estimator_findings(estimate, batch), properties.leaves_no_residue(estimate, batch)]


def made_batch() -> FrozenBatch:
    """Return six groups of four completions in float64, the kit's `regular` batch.

    Each group has right and wrong completions, with rewards in [0, 1]. Completions have 1 to 9 tokens, some with gaps
    like those of observations. Ratios are near and far from 1.
    """
    return read_batch(batches.frozen_arrays("regular"))


def _without_terms(algorithm: RLVRModule) -> RLVRModule:
    """Return a copy of an algorithm without its terms."""
    clone = deepcopy(algorithm)
    clone.terms = []
    return clone


def _zero_advantages(algorithm: RLVRModule, batch: FrozenBatch) -> float:
    """Compare the gradient of rows with advantage 0 with 0, without the terms.

    A class may declare that it runs such rows; then the result is 0.
    """
    without_terms = _without_terms(algorithm)
    if without_terms.trains_all_rows:
        return 0.0
    step = algorithm_step(batch, without_terms)
    live = torch.arange(len(batch.logp)) % 2 == 0  # (B,)
    advantages = (step.advantages.reshape(len(live), -1) * live[:, None]).view_as(step.advantages)
    _, gradient = loss_and_gradient(step, batch, None, advantages)
    return properties.error({"dlogp": gradient}, {"dlogp": torch.where(live[:, None], gradient, 0.0)})


def _ratio(algorithm: RLVRModule, batch: FrozenBatch) -> float:
    """Return 0 if the gradient depends on the log-probabilities at rollout time just if `has_ratio` says so, else 1."""
    without_terms = _without_terms(algorithm)
    advantages, _ = without_terms.estimate(batch.groups)
    logp = batch.logp.clone().requires_grad_(True)
    x = frozen_inputs(batch, without_terms, logp, advantages)
    gradients = []
    for shift in (0, 0.01):
        shifted = replace(x, old_logp=x.old_logp - shift, rollout_logp=x.rollout_logp - shift)
        loss, _ = without_terms.loss(shifted)
        (gradient,) = torch.autograd.grad(loss, logp)
        gradients.append(gradient)
    return float(without_terms.has_ratio == torch.equal(*gradients))
