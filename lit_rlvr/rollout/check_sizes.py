"""Checks the sizes of a run against each other before any weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from lit_rlvr.errors import MOST, UserError, check_all, refuse_all
from lit_rlvr.objectives import settle_correction
from lit_rlvr.policy.precision import PRECISIONS, bf16_slowdown, compute_dtype
from lit_rlvr.rollout.synced_engine import SyncedEngine
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.optimizer import updates_of
from lit_rlvr.types import Sampling

_log = logging.getLogger("lit_rlvr")

SLOW = 4.0
"""Slowdown of bfloat16 above which a warning is given."""


def check_sizes(
    module: RLVRModule, engine: SyncedEngine, sampling: Sampling, group_size: int, overlap: bool, prompts: int,
    ranks: int, precision: str = "32-true", device: str = "cpu",
) -> None:  # fmt: skip
    """Check the settings against each other.

    Args:
        sampling: of training completions. group_size: completions per prompt.
        overlap: whether the next rollout is generated while the current one is trained on.
        prompts: prompts per step, over all ranks.
        ranks: number of processes.
        precision, device: the trainer's.

    Raises:
        UserError: sizes do not divide or are too small or too large, or the sampling, precision or overlap is not
            supported; a message for each.
    """
    check_all(
        lambda: refuse_all(_wrong_sizes(module, sampling, group_size, prompts, ranks, precision)),
        lambda: engine.check_hardware(device, compute_dtype(precision)),
        lambda: _check_overlap(module, engine, prompts, precision, device) if overlap else None,
    )


def _wrong_sizes(
    module: RLVRModule, sampling: Sampling, group_size: int, prompts: int, ranks: int, precision: str
) -> Iterator[str]:
    """What is wrong with the sizes, the sampling and the precision, a line each."""
    if sampling.truncated:
        yield (
            "rollout.sampling: with top_p or top_k, completions are not drawn from the distribution in the loss; "
            "use top_p: 1.0 and top_k: 0 for training (eval_sampling may use them)"
        )
    if group_size < module.advantage.min_group:
        yield (
            f"rollout.group_size: {group_size} is too small: model.advantage compares the completions of "
            f"a prompt; use at least {module.advantage.min_group}"
        )
    if prompts * group_size > MOST:
        yield (
            f"rollout.group_size: {group_size} completions for each of data.prompts_per_step={prompts} prompts are "
            f"{prompts * group_size} sequences in a rollout; use at most {MOST}"
        )
    if prompts % (ranks * module.updates_per_rollout):
        yield (
            f"data.prompts_per_step: {prompts} prompts cannot be split evenly over {ranks} rank(s) x "
            f"{module.updates_per_rollout} minibatch(es) (model.updates_per_rollout) of whole groups; "
            f"use a multiple of {ranks * module.updates_per_rollout}"
        )
    if (module.reference_pool_size or group_size) < group_size:
        yield f"model.reference_pool_size: {module.reference_pool_size} is below rollout.group_size={group_size}"
    if precision not in PRECISIONS:
        yield (
            f"trainer.precision: {precision} is not supported: the weights are kept in float32; "
            f"use {' or '.join(PRECISIONS)}"
        )


def log_sizes(
    module: RLVRModule, engine: SyncedEngine, group_size: int, prompts: int, ranks: int, precision: str, device: str
) -> None:
    """Log the sizes that follow from the settings, and warn of those that are slow or do not fit the algorithm.

    Args:
        group_size, prompts, ranks, precision, device: as `check_sizes` takes them.
    """
    if precision == "bf16-mixed" and device == "cpu" and (factor := bf16_slowdown()) > SLOW:
        _log.warning(
            "this CPU multiplies in bfloat16 %.0f times slower than in float32; use --trainer.precision 32-true", factor
        )
    name, updates = type(module).__name__, updates_of(module)
    if updates > 1 and not module.has_ratio:
        _log.warning("%s has no ratio: only the first of %d updates per rollout is on-policy", name, updates)
    if updates == 1 and module.needs_updates:
        _log.info("%s: with one update per rollout its gradient is GRPO's; use more updates_per_rollout", name)
    correction = settle_correction(module.importance_correction, engine.exact(compute_dtype(precision)))
    if engine.quantized and correction == "none":
        _log.warning(
            "engine %s computes in 8 bits, so it does not sample from the trained policy: use "
            "model.importance_correction: token_truncate", engine.name,
        )  # fmt: skip
    _log.info(
        "%d prompts x %d completions = %d sequences per rollout: %d rank(s) x %d minibatch(es) of %d group(s), "
        "%d pass(es), at most %d tokens at once; engine %s, importance correction %s",
        prompts, group_size, prompts * group_size, ranks, module.updates_per_rollout,
        prompts // ranks // module.updates_per_rollout, module.epochs_per_rollout, module.tokens_per_microbatch,
        engine.name, correction,
    )  # fmt: skip


def _check_overlap(module: RLVRModule, engine: SyncedEngine, prompts: int, precision: str, device: str) -> None:
    """Refuse settings that are incompatible with generating a rollout one iteration early.

    Raises:
        UserError: names the setting.
    """
    correction = settle_correction(module.importance_correction, engine.exact(compute_dtype(precision)))
    reason = None
    if engine.shares_weights:
        reason = f"engine {engine.name} decodes with the weights being trained; use vllm"
    elif engine.in_process and device == "cuda":
        reason = f"engine {engine.name} needs the GPU that is training; use VLLMServerEngine on other GPUs"
    elif module.wanted_groups(prompts):
        reason = "dynamic sampling needs scored groups before it can choose further prompts; turn it off"
    elif module.advantage.needs_reference and module.reference_rollouts == "fresh":
        reason = "fresh reference rollouts need the engine at the same time; use model.reference_rollouts: pool"
    elif correction == "none":
        reason = "the rollouts are one iteration old; set model.importance_correction"
    if reason:
        raise UserError(f"rollout.overlap: {reason}")
