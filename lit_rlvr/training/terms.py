"""Terms: costs of tokens in addition to an algorithm's objective.

Ours are built from `model.kl`, `model.loss` and `model.teacher`; `model.terms` takes others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from threading import Timer
from typing import Any, Literal

import torch
from torch import Tensor

from lit_rlvr.common.arguments import ChecksArguments
from lit_rlvr.common.init_arguments import init_arguments
from lit_rlvr.common.log import log
from lit_rlvr.common.returned import inputs_stay, require_cost
from lit_rlvr.common.user_code import check_calls_super, check_takes, defined_at
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import KLEstimator, LossInputs, kl_estimate, ratio
from lit_rlvr.policy.policy import Policy

Place = Literal["loss", "rewards", "advantages"]
Need = Literal["ref_logp", "teacher_logp", "entropy", "correct", "divergence", "expert_imbalance", "observation_logp"]
NEEDS: dict[Place, tuple[Need, ...]] = {
    "loss": ("ref_logp", "entropy", "correct", "divergence", "expert_imbalance", "observation_logp"),
    "rewards": ("ref_logp", "entropy"),
    "advantages": ("ref_logp", "entropy", "teacher_logp"),
}
"""Place -> the fields that a term may need there."""
SLOW_COST_SECONDS = 10.0
"""Seconds after which a line says that a term is still being computed."""


@dataclass
class InitialLogprobs:
    """The input of a term that counts in rewards or advantages, and of the choice of tokens: all tokens of a rollout of
    B rows, before the first update.

    Args:
        mask: (B, T) bool, the tokens in the loss.
        logp: (B, T) log-probabilities under the policy; None = nothing needs them yet.
        entropy: (B, T) of the policy; None = neither a term nor the choice of tokens needs it.
        ref_logp: (B, T) log-probabilities under the reference.
        teacher_logp: (B, T) log-probabilities under the teacher.
    """

    mask: Tensor
    logp: Tensor | None = None
    entropy: Tensor | None = None
    ref_logp: Tensor | None = None
    teacher_logp: Tensor | None = None


class Term(ChecksArguments):
    """A cost of each token, which training lowers in addition to the objective.

    Example:
        ```python
        from lit_rlvr import Term


        class Confidence(Term):
            metric = "confidence"

            def cost(self, x):
                return x.logp  # (B, T); lower log-probabilities cost less
        ```
        ```yaml
        model:
          class_path: GRPO
          init_args:
            terms: [{class_path: my_task.Confidence, init_args: {coef: 0.01}}]
        ```

    Args:
        coef: its weight.

    Attributes:
        place: where it counts. `loss`: its gradient is added, averaged over tokens as `model.loss.aggregation` says,
            without importance weights. `rewards`: the sum over a completion is taken from its reward, before the
            advantages are estimated. `advantages`: it is taken from the token's advantage.
        needs: the fields of `cost`'s input that are computed only for terms that need them: `ref_logp` and `entropy`;
            in the loss `correct`, and `observation_logp`, which makes it a cost of the observed tokens in place of the
            sampled ones; in advantages `teacher_logp`, with a teacher. In the loss `entropy` is always there,
            and for a term that needs it has a gradient.
        metric: the mean over tokens is logged as `train/<metric>`; "" = not at all.
        option: the option that it comes from, for messages.
    """

    config_key = "model.terms"
    option = "model.terms"
    place: Place = "loss"
    needs: tuple[Need, ...] = ()
    metric: str = ""

    def __init__(self, coef: float = 1.0) -> None:
        self.init_args = init_arguments()
        self.coef = coef

    def cost(self, x: Any) -> Tensor:
        """Return the cost (B, T) of each token, a pure function of its input; of tokens outside the mask any number.

        Args:
            x: `LossInputs` in the loss, else `InitialLogprobs`.
        """
        raise NotImplementedError(f"{type(self).__name__}.cost")

    @property
    def is_of_observations(self) -> bool:
        """True if it costs the tokens that an environment answered, False if it costs those that the model sampled."""
        return "observation_logp" in self.needs

    def tokens(self, x: LossInputs | InitialLogprobs) -> Tensor:
        """Return the tokens (B, T) that it costs, as a mask."""
        if isinstance(x, LossInputs) and self.is_of_observations:
            assert x.observed is not None
            return x.observed
        return x.mask

    def weight(self, x: LossInputs) -> Tensor:
        """Return the share (B, T) of each of these tokens in the loss."""
        if self.is_of_observations:
            assert x.observation_weight is not None
            return x.observation_weight
        return x.plain_weight

    def renew(self, policy: Policy, iteration: int) -> None:
        """Follow the policy, after each iteration.

        Collective: call it on every rank.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores of it.

        Collective: call it on every rank.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; it is not called for {}."""


def require_term(term: Term) -> None:
    """Refuse a term of the user's that cannot be computed.

    Raises:
        UserError: it has no `cost` of one argument, its `__init__` does not call ours, or its coefficient is no finite
            number.
    """
    name = type(term).__name__
    check_calls_super(term, "model.terms")
    if type(term).cost is Term.cost:
        raise UserError(f"model.terms: {name} has no cost; give it a method cost(self, x) that returns a tensor (B, T)")
    check_takes(term.cost, "x")
    if not isinstance(term.coef, Real) or not math.isfinite(term.coef):
        raise UserError(f"model.terms: coef of {name} is {term.coef!r}; give a finite number")


@contextmanager
def said_if_slow(term: Term) -> Iterator[None]:
    """Print a line if computing a term takes long."""
    said = f"{term.option}: {defined_at(term.cost)} is still computing after {SLOW_COST_SECONDS:.0f} s"
    timer = Timer(SLOW_COST_SECONDS, log.warning, ("%s", said))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def term_costs(terms: list[Term], place: Place, x: LossInputs | InitialLogprobs) -> Iterator[tuple[Term, Tensor]]:
    """Yield the terms that count in a place, in their order, each with its cost (B, T) of each token, 0 where masked.

    Raises:
        UserError: the input lacks what a term needs, a cost has another shape or type, or one in the rewards or
            advantages is not finite or too large.
    """
    for term in terms:
        if term.place != place:
            continue
        for need in term.needs:
            if getattr(x, need, None) is None:
                raise UserError(f"{term.option}: it needs `{need}`, which is missing; give it, or leave the option out")
        with inputs_stay(term.cost, x, "x", term.option), said_if_slow(term):
            cost = term.cost(x)
        mask = term.tokens(x)
        require_cost(term.option, term.cost, cost, mask, must_be_finite=place != "loss")
        has_gradient = cost.requires_grad or "entropy" in term.needs
        if isinstance(x, LossInputs) and x.logp.requires_grad and not has_gradient:
            raise UserError(
                f"model.terms: {defined_at(term.cost)} has no gradient: make it of x.logp without detach, or of "
                'x.entropy with needs = ("entropy",)'
            )
        cost = torch.where(mask, cost, 0.0)
        if place != "loss" and not _all_finite((term.coef * cost).sum(1).square()):  # estimators take its variance
            raise UserError(
                f"{term.option}: {defined_at(term.cost)} times its coef {term.coef:g} is too large for the {place}, up "
                f"to {float(cost.abs().max()):g} a token; lower the cost or coef"
            )
        yield term, cost


def _all_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def broken_terms(terms: list[Term], x: LossInputs) -> list[str]:
    """Return the terms in the loss that are not finite, in their sum or its gradient, where the policy's numbers are.

    Args:
        terms: all terms.
        x: rows of a step, with gradients.
    """
    inputs = []
    for value in vars(x).values():
        if isinstance(value, Tensor) and value.requires_grad:
            inputs.append(value)
    if not all(_all_finite(value[x.mask]) for value in inputs):
        return []
    broken = []
    for term, cost in term_costs(terms, "loss", x):
        total = (term.coef * cost * term.weight(x)).sum()
        gradients = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
        if not all(_all_finite(value) for value in (total, *gradients) if value is not None):
            broken.append(f"{term.option}: {defined_at(term.cost)}")
    return broken


class KLTerm(Term):
    """`kl_estimate(logp, ref_logp)`, the divergence from a reference policy; see `KL`."""

    needs = ("ref_logp",)
    metric = "kl"

    def __init__(self, coef: float, estimator: KLEstimator, in_reward: bool, bias_correction: bool) -> None:
        super().__init__(coef)
        self.estimator = estimator
        self.bias_correction = bias_correction
        self.place = "rewards" if in_reward else "loss"
        self.option = "model.kl.in_reward" if in_reward else "model.kl.coef"

    def cost(self, x: Any) -> Tensor:
        kl = kl_estimate(x.logp, x.ref_logp, x.mask, self.estimator)
        if self.bias_correction:
            return kl * ratio(x.logp, x.old_logp, x.mask)
        return kl


class ExpertBalance(Term):
    """The uneven use of a mixture's experts within each completion. Source: DeepSeek-V3 (arXiv 2412.19437)."""

    option = "model.loss.balance_coef"
    needs = ("expert_imbalance",)
    metric = "expert_balance"

    def cost(self, x: LossInputs) -> Tensor:
        assert x.expert_imbalance is not None
        return x.expert_imbalance


class EntropyBonus(Term):
    """`-entropy` of the policy."""

    option = "model.loss.entropy_coef"
    needs = ("entropy",)

    def cost(self, x: LossInputs) -> Tensor:
        assert x.entropy is not None
        return -x.entropy


class PositiveNLL(Term):
    """`-logp` of correct completions, 0 in others. Source: Yue et al. 2025 (VAPO, arXiv 2504.05118)."""

    option = "model.loss.positive_nll_coef"
    needs = ("correct",)

    def cost(self, x: LossInputs) -> Tensor:
        assert x.correct is not None
        return -x.logp * x.correct[:, None]


class ObservationNLL(Term):
    """`-logp` of the tokens that an environment answered between turns (ECHO)."""

    option = "model.loss.observation_coef"
    needs = ("observation_logp",)
    metric = "observation_nll"

    def cost(self, x: LossInputs) -> Tensor:
        assert x.observation_logp is not None
        return -x.observation_logp
