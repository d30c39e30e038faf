"""The sizes and the plan that follow from settings, and settings against each other."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from lit_rlvr.common.log import log
from lit_rlvr.engines.vllm import GPU_SEQUENCES
from lit_rlvr.environments import Agent
from lit_rlvr.errors import refuse_all
from lit_rlvr.plan import RunPlan
from lit_rlvr.policy.precision import bf16_slowdown
from lit_rlvr.rollout.preflight.lengths import length_requirements
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.optimizer import steps_per_iteration

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lit_rlvr.datamodules import PromptDataModule


SLOW = 4.0
"""Slowdown of bfloat16 above which a warning is given."""


def plan_run(rollout: RolloutSettings, trainer: Trainer, module: RLVRModule, data: PromptDataModule) -> RunPlan:
    """Return what follows from the settings of a run, before its weights load."""
    plan = plan_rollouts(RunPlan.of_trainer(trainer), rollout, module, data.prompts_per_rollout)
    sampled = most_sampled_tokens(rollout, trainer, module, data)
    return replace(plan, most_tokens=sampled * module.epochs_per_rollout)


def plan_rollouts(plan: RunPlan, rollout: RolloutSettings, module: RLVRModule, prompts: int) -> RunPlan:
    """Return a plan with what follows for its rollouts, of some prompts each."""
    return replace(
        plan,
        prompts=prompts,
        completions=rollout.completions_of(module),
        sampling=rollout.sampling,
        staleness=0 if rollout.replay.rollouts_from else rollout.staleness,
        replays_routes=rollout.replay_routes,
        has_agent=isinstance(rollout.environment, Agent),
        is_exact=rollout.engine.is_exact(plan.dtype),
    )


def most_completions(rollout: RolloutSettings, module: RLVRModule, data: PromptDataModule) -> int:
    """Return the most completions that a run asks for at once: of a rollout, or of a batch of a validation."""
    counts = [data.prompts_per_rollout * rollout.completions_of(module)]
    for other in data.validated:
        counts.append(other.evaluation.prompts_per_batch * rollout.samples_of(other.name))
    return max(counts)


def sequences_per_server(rollout: RolloutSettings, module: RLVRModule, data: PromptDataModule, servers: int) -> int:
    """Return how many sequences each server generates at once (`--max-num-seqs`): its share of all in flight.

    Args:
        rollout: the settings of rollouts.
        module: the algorithm.
        data: the data.
        servers: copies of the model that generate, each on GPUs of its own.
    """
    in_flight = most_completions(rollout, module, data) * (1 + rollout.staleness)
    group = rollout.completions_of(module)
    groups = math.ceil(in_flight / (group * servers))  # a group stays together
    return min(groups * group, GPU_SEQUENCES)


def most_sampled_tokens(rollout: RolloutSettings, trainer: Trainer, module: RLVRModule, data: PromptDataModule) -> int:
    """Return the most tokens that a run samples to train on; 0 = its steps are not bounded."""
    rollouts = max(0, math.ceil(trainer.max_steps / steps_per_iteration(module)))
    completions = data.prompts_per_rollout * rollout.completions_of(module)
    return rollouts * completions * rollout.sampling.max_tokens


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
