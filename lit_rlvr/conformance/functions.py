"""The check of a plain function: a loss or an advantage of anybody's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_rlvr.common.user_code import check_takes, defined_at
from lit_rlvr.conformance import properties
from lit_rlvr.conformance.batches import BATCHES, Batch, frozen_batch
from lit_rlvr.conformance.properties import PUBLISHED_TOLERANCE, Finding, PrepareStep, Step, error, replay_step
from lit_rlvr.conformance.published import ADVANTAGES, LOSSES, expected, find_published
from lit_rlvr.errors import UserError


def check_loss(
    function: Callable[..., Tensor], expect: str | None = None, stops_gradient: bool = False
) -> list[Finding]:
    """Measure a loss, a plain function of some rows of one optimizer step.

    The kit calls it once for each micro-batch of each rank, and adds the results up:
    `function(logp, old_logp, advantages, mask, **others)`, with b rows of the B of the step.

    Args:
        function: a function of
            `logp` (b, T), log-probabilities under the current policy, with a gradient;
            `old_logp` (b, T), log-probabilities under the policy at the beginning of the iteration;
            `advantages` (b, 1), constant;
            `mask` (b, T) bool, True = in the loss;
            and of those of the following that its signature names:
            `num_tokens`, `num_sequences`: tokens in the loss, and completions, of the whole optimizer step: of all
            micro-batches on all ranks;
            `max_tokens`: the configured longest completion;
            `num_microbatches`: micro-batches of this rank, over which other code divides (gradient accumulation);
            `world_size`: ranks; a function that names it has its results averaged over ranks, as DDP and FSDP average
            gradients, instead of added up;
            `ref_logp`, `rollout_logp` (b, T): log-probabilities under the reference policy, and at sampling time.
            It returns a scalar to minimise, for these rows.
        expect: the published loss whose values and gradients it must have, a key of `LOSSES`.
        stops_gradient: it detaches values on purpose; a published loss says so itself.

    Raises:
        UserError: it asks for something else, or returns no scalar.
    """
    return check_step(lambda batch: plain_step(function, batch), expect, stops_gradient)


def check_step(prepare: PrepareStep, expect: str | None = None, stops_gradient: bool = False) -> list[Finding]:
    """Measure a loss that is prepared in any way; see `check_loss`."""
    published = None
    if expect:
        published = find_published(expect, LOSSES)
    batch = frozen_batch("regular")
    return [
        *([] if expect is None else [has_published_values(prepare, expect, name) for name in BATCHES]),
        *properties.loss_findings(prepare, batch, stops_gradient or bool(published and published.stops_gradient)),
    ]


def check_estimator(function: Callable[..., Tensor], expect: str | None = None) -> list[Finding]:
    """Measure an advantage, a plain function of the rewards of a whole rollout.

    Args:
        function: a function of `rewards` (P, G), and of those of the following that its signature names: `correct`,
            `lengths` (sampled tokens) and `reference_rewards` (of the reference model's completions), all (P, G). It
            returns the advantages (P, G).
        expect: the published advantage whose values it must have, a key of `ADVANTAGES`.

    Raises:
        UserError: it asks for something else, or returns another shape.
    """

    def estimate(batch: Batch) -> Tensor:
        named = {}
        for name in ("correct", "lengths", "reference_rewards"):
            named[name] = getattr(batch, name)
        advantages = call_by_name(function, {"rewards": batch.rewards.clone()}, named)
        return require_shape(function, advantages, batch.rewards.shape)

    findings = properties.estimator_findings(estimate, frozen_batch("regular"))
    if expect is None:
        return findings
    find_published(expect, ADVANTAGES)
    errors = {}
    for name in BATCHES:
        errors[name] = error({"advantages": estimate(frozen_batch(name))}, expected(expect, name))
    return [*(values_finding(expect, name, measured) for name, measured in errors.items()), *findings]


def plain_step(function: Callable[..., Tensor], batch: Batch) -> Step:
    """Return the optimizer step of a plain loss on a batch, with the batch's advantages."""
    assert batch.advantages is not None
    counts = {
        "num_tokens": int(batch.mask.sum()),
        "num_sequences": len(batch.mask),
        "max_tokens": batch.max_tokens,
    }
    averages = "world_size" in inspect.signature(function).parameters

    def loss(logp: Tensor, advantages: Tensor, rows: list[int], num_microbatches: int, world_size: int) -> Tensor:
        tokens = {
            "ref_logp": batch.ref_logp,
            "rollout_logp": batch.old_logp if batch.rollout_logp is None else batch.rollout_logp,
        }
        named: dict[str, Any] = {}
        for name, value in tokens.items():
            if value is not None:
                named[name] = value[rows]
        named |= counts | {"num_microbatches": num_microbatches, "world_size": world_size}
        arguments = {
            "logp": logp[rows],
            "old_logp": batch.old_logp[rows],
            "advantages": advantages.reshape(-1, 1)[rows],
            "mask": batch.mask[rows],
        }
        loss_value = require_shape(function, call_by_name(function, arguments, named), torch.Size())
        if averages:
            return loss_value / world_size
        return loss_value

    return Step(batch.advantages, loss, function)


def has_published_values(prepare: PrepareStep, expect: str, name: str) -> Finding:
    """Compare a loss on a frozen batch with a published one; each row's gradient relative to its own largest value."""
    batch = frozen_batch(name)
    computed = replay_step(prepare(batch), batch)
    wanted = expected(expect, name)
    rows = []
    for a, b in zip(computed["dlogp"], wanted["dlogp"], strict=True):
        rows.append(error({"dlogp": a}, {"dlogp": b}))
    return values_finding(expect, name, float(np.max([error(computed, wanted), *rows])))


def values_finding(expect: str, name: str, measured: float) -> Finding:
    """Return the finding on values that are compared with published ones."""
    return Finding(
        f"values: {name}",
        measured,
        PUBLISHED_TOLERANCE,
        f"those of {expect} on the batch {name!r}",
        "another normaliser, clip range, standard deviation or epsilon than the published formula",
    )


def call_by_name(function: Callable[..., Any], arguments: Mapping[str, Any], named: Mapping[str, Any]) -> Any:
    """Call a function with positional arguments and those of `named` that its signature has.

    Args:
        function: the user's function.
        arguments: the positional arguments, by the names that the documentation calls them.
        named: further arguments by name.

    Raises:
        UserError: it needs an argument that is not there, or does not take the positional ones.
    """
    parameters = list(inspect.signature(function).parameters.values())
    positional = []
    for p in parameters:
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            positional.append(p)
    others = positional[len(arguments) :] + [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    unknown = []
    for p in others:
        if p.name not in named and p.default is p.empty:
            unknown.append(p.name)
    if unknown:
        raise UserError(
            f"{defined_at(function)} takes {', '.join(unknown)}; after its first {len(arguments)} arguments the kit "
            f"has only {', '.join(named)}"
        )
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if takes_all:
        keywords = named
    else:
        keywords = {}
        for p in others:
            if p.name in named:
                keywords[p.name] = named[p.name]
    check_takes(function, *arguments, **keywords)
    return function(*arguments.values(), **keywords)


def require_shape(function: Callable[..., Any], value: Any, shape: torch.Size) -> Tensor:
    """Return what a function gave, if it is a tensor of that shape on the CPU.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, Tensor) or value.shape != shape or value.device.type != "cpu":
        if isinstance(value, Tensor):
            text = f"shape {tuple(value.shape)} on {value.device}"
        else:
            text = type(value).__name__
        raise UserError(f"{defined_at(function)} must return a tensor of shape {tuple(shape)} on cpu, not {text}")
    return value
