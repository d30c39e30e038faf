"""Sizes, precision and engine against each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lit_rlvr.engines.base import RolloutEngine
from lit_rlvr.errors import MAX_SIZE, UserError, check_all, log, refuse_all
from lit_rlvr.policy.architecture import has_experts, layer_configs
from lit_rlvr.policy.loading import load_model_config
from lit_rlvr.policy.precision import PRECISIONS, bf16_slowdown
from lit_rlvr.rollout.preflight.lengths import length_requirements
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.optimizer import updates_per_iteration
from lit_rlvr.training.plan import RunPlan
from lit_rlvr.types import Sampling

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule


def check_routes(module: RLVRModule, engine: RolloutEngine, sampling: Sampling, device: str) -> None:
    """Refuse `rollout.replay_routes` for a model, an engine or settings that it is not for. Reads only the model's
    config.

    Args:
        module: the algorithm.
        engine: the engine that generates.
        sampling: of training completions.
        device: the trainer's.

    Raises:
        UserError: names the reason.
    """
    layers = layer_configs(load_model_config(module.model_folder))
    teacher = module.teachers.options
    is_own_teacher = teacher is not None and teacher.model is None and teacher.ema is None
    refuse_all(
        f"rollout.replay_routes: {reason}; leave the option off"
        for is_refused, reason in (
            (not any(map(has_experts, layers)), "the model has no experts among which tokens choose"),
            (module.compute.torch_compile is True, "layers that model.compute.torch_compile compiles cannot replay"),
            (is_own_teacher, "a policy that is its own teacher without an average (model.teacher.ema) reads another "
                             "prompt, whose experts are unknown"),
        )
        if is_refused
    )  # fmt: skip
    engine.check_routes(device, sampling)


SLOW = 4.0
"""Slowdown of bfloat16 above which a warning is given."""


def check_sizes(rollout: RolloutSettings, module: RLVRModule, plan: RunPlan) -> None:
    """Check the settings against each other.

    Args:
        rollout: the settings of rollouts.
        module: the algorithm.
        plan: what follows from them.

    Raises:
        UserError: sizes do not divide or are too small or too large, or the sampling, precision or staleness is not
            supported; a message for each.
    """
    check_all(
        lambda: refuse_all(_wrong_sizes(rollout, module, plan)),
        lambda: rollout.engine.check_hardware(plan.device.type, plan.dtype),
        lambda: _check_staleness(rollout, module, plan),
    )
    if rollout.replay_routes:
        check_routes(module, rollout.engine, rollout.sampling, plan.device.type)


def _wrong_sizes(rollout: RolloutSettings, module: RLVRModule, plan: RunPlan) -> Iterator[str]:
    """Yield what is wrong with the sizes, the sampling and the precision, a line each."""
    group_size = plan.completions
    prompts = plan.prompts
    ranks = plan.ranks
    if rollout.sampling.truncates_distribution:
        yield (
            "rollout.sampling: with top_p or top_k, completions are not drawn from the distribution in the loss; "
            "use top_p: 1.0 and top_k: 0 for training (evaluation.sampling may use them)"
        )
    if group_size < module.advantage.min_group:
        yield (
            f"rollout.group_size: {group_size} is too small: model.advantage compares the completions of "
            f"a prompt; use at least {module.advantage.min_group}"
        )
    if prompts * group_size > MAX_SIZE:
        yield (
            f"rollout.group_size: {group_size} completions for each of data.prompts_per_rollout={prompts} prompts are "
            f"{prompts * group_size} sequences in a rollout; use at most {MAX_SIZE}"
        )
    if prompts % (ranks * module.updates_per_rollout):
        yield (
            f"data.prompts_per_rollout: {prompts} prompts cannot be split evenly over {ranks} rank(s) x "
            f"{module.updates_per_rollout} minibatch(es) (model.updates_per_rollout) of whole groups; "
            f"use a multiple of {ranks * module.updates_per_rollout}"
        )
    wanted = module.reference_completions
    if wanted is not None and (wanted.pool_size or group_size) < group_size:
        yield f"model.reference_pool_size: {wanted.pool_size} is below rollout.group_size={group_size}"
    if plan.precision not in PRECISIONS:
        yield (
            f"trainer.precision: {plan.precision} is not supported: the weights are kept in float32; "
            f"use {' or '.join(PRECISIONS)}"
        )


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
    if plan.precision == "bf16-mixed" and plan.device.type == "cpu" and (factor := bf16_slowdown()) > SLOW:
        log.warning(
            "this CPU multiplies in bfloat16 %.0f times slower than in float32; use --trainer.precision 32-true", factor
        )
    name = type(module).__name__
    updates = updates_per_iteration(module)
    if updates > 1 and not module.has_ratio:
        log.warning("%s has no ratio: only the first of %d updates per rollout is on-policy", name, updates)
    if updates == 1 and module.needs_updates:
        log.info("%s: with one update per rollout its gradient is GRPO's; use more updates_per_rollout", name)
    correction = module.choose_correction(plan.is_exact).mode
    if engine.quantized and correction == "none" and not module.uses_rollout:
        log.warning(
            "engine %s computes in 8 bits, so it does not sample from the trained policy: use "
            "model.importance.correction: token_truncate", engine.name,
        )  # fmt: skip
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
        prompts, group_size, prompts * group_size, plan.ranks, module.updates_per_rollout,
        prompts // plan.ranks // module.updates_per_rollout, module.epochs_per_rollout, max(budget, longest), more,
        engine.name, correction,
    )  # fmt: skip


def _check_staleness(rollout: RolloutSettings, module: RLVRModule, plan: RunPlan) -> None:
    """Refuse settings that are incompatible with generating during training.

    Raises:
        UserError: names the setting.
    """
    engine = rollout.engine
    staleness = rollout.staleness
    if not staleness or rollout.replay.rollouts_from:
        return
    correction = module.choose_correction(plan.is_exact)
    reason = None
    if engine.shares_weights:
        reason = f"engine {engine.name} decodes with the weights being trained; use vllm"
    elif engine.in_process and plan.device.type == "cuda":
        reason = f"engine {engine.name} needs the GPU that is training; use VLLMServerEngine on other GPUs"
    elif not engine.concurrent and staleness > 1:
        reason = f"engine {engine.name} takes weights only between rollouts, so it is at most 1; use VLLMServerEngine"
    elif module.samples_reference:
        reason = "fresh completions of the reference need the engine, too; use AAPO with reference_rollouts: pool"
    elif not correction.is_bounded and not module.uses_rollout:
        reason = (
            f"the rollouts are up to {staleness} iteration(s) old; set model.importance.correction, with "
            "model.importance.cap"
        )
    if reason:
        raise UserError(f"rollout.staleness: {reason}")
