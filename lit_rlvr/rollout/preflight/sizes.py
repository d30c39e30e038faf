"""Settings against each other, and the sizes that follow from them."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from lit_rlvr.common.log import log
from lit_rlvr.errors import refuse_all
from lit_rlvr.plan import RunPlan
from lit_rlvr.policy.precision import bf16_slowdown
from lit_rlvr.rollout.preflight.lengths import length_requirements
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.optimizer import steps_per_iteration

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule


SLOW = 4.0
"""Slowdown of bfloat16 above which a warning is given."""


def check_settings(rollout: RolloutSettings, module: RLVRModule, plan: RunPlan) -> None:
    """Refuse what the parts of a run say that they cannot do together: each part's `problems` says so.

    Args:
        rollout: the settings of rollouts.
        module: the algorithm.
        plan: what follows from the settings.

    Raises:
        UserError: a message for each problem.
    """
    refuse_all(chain(plan.problems(), rollout.problems(plan), module.problems(plan), rollout.engine.problems(plan)))


def log_sizes(
    rollout: RolloutSettings, module: RLVRModule, plan: RunPlan, data: PromptDataModule | None = None
) -> None:
    """Log the sizes that follow from the settings, and warn of those that are slow or do not fit the algorithm.

    Args:
        rollout: the settings of rollouts.
        module: the algorithm.
        plan: what follows from them.
        data: of a run that trains; a micro-batch has at least one whole prompt with its completion.
    """
    engine = rollout.engine
    prompts = plan.prompts
    group_size = plan.completions
    trained = [] if data is None else length_requirements(rollout, data)[:1]
    longest = max((requirement.max_sequence_tokens for requirement in trained), default=0)
    _warn_of_slow_or_unfit(rollout, module, plan)
    budget = module.budget.tokens
    more = ""
    if longest > budget:
        more = (
            " (the longest prompt with its completion alone, so more than "
            f"model.compute.tokens_per_microbatch={budget})"
        )
    log.info(
        "%d prompts x %d completions = %d sequences per rollout: %d rank(s) x %d minibatch(es) of %d group(s), "
        "%d pass(es), at most %d tokens at once%s; engine %s, importance correction %s",
        prompts,
        group_size,
        prompts * group_size,
        plan.ranks,
        module.updates_per_rollout,
        prompts // plan.ranks // module.updates_per_rollout,
        module.epochs_per_rollout,
        max(budget, longest),
        more,
        engine.name,
        module.resolve_importance(plan.is_exact).mode,
    )


def _warn_of_slow_or_unfit(rollout: RolloutSettings, module: RLVRModule, plan: RunPlan) -> None:
    """Warn of a slow precision, and of updates and an engine that do not fit the algorithm."""
    if plan.precision == "bf16-mixed" and plan.device.type == "cpu" and (factor := bf16_slowdown()) > SLOW:
        log.warning(
            "this CPU multiplies in bfloat16 %.0f times slower than in float32; use --trainer.precision 32-true", factor
        )
    name = type(module).__name__
    updates = steps_per_iteration(module)
    if updates > 1 and not module.has_ratio:
        log.warning("%s has no ratio: only the first of %d updates per rollout is on-policy", name, updates)
    if updates == 1 and module.needs_updates:
        log.info("%s: with one update per rollout its gradient is GRPO's; use more updates_per_rollout", name)
    correction = module.resolve_importance(plan.is_exact).mode
    if rollout.engine.quantized and correction == "none" and not module.uses_rollout:
        log.warning(
            "engine %s computes in 8 bits, so it does not sample from the trained policy: use "
            "model.importance.correction: token_truncate",
            rollout.engine.name,
        )
