"""Checks sizes and lengths against each other and the model, before any weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_rlvr.engines.base import RolloutEngine
from lit_rlvr.errors import MAX_SIZE, UserError, check_all, refuse_all
from lit_rlvr.policy.architecture import has_experts, layer_configs
from lit_rlvr.policy.loading import load_model_config
from lit_rlvr.policy.precision import PRECISIONS, bf16_slowdown, compute_dtype
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.optimizer import updates_of
from lit_rlvr.types import Prompt, Sampling

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule


_log = logging.getLogger("lit_rlvr")


@dataclass(frozen=True)
class LengthRequirement:
    """A set of prompts and the maximum length of their completions.

    Args:
        name: the set's name in messages.
        prompts: at least one.
        max_tokens: maximum tokens of a completion.
        option: the option that sets `max_tokens`.
        prompt_option: the option that leaves out longer prompts.
        min_prompt_tokens: the least length to assume for a prompt, because an environment may add to it.
    """

    name: str
    prompts: Sequence[Prompt]
    max_tokens: int
    option: str
    prompt_option: str = "data.init_args.reading.max_prompt_tokens"
    min_prompt_tokens: int = 0

    @property
    def longest(self) -> Prompt:
        return max(self.prompts, key=lambda prompt: len(prompt.token_ids))

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of the longest prompt plus the longest completion."""
        return max(len(self.longest.token_ids), self.min_prompt_tokens) + self.max_tokens


def length_requirements(
    data: PromptDataModule, sampling: Sampling, eval_sampling: Sampling, prompts_grow: bool = False
) -> list[LengthRequirement]:
    """Return the loaded sets of a run, with their maximum completion lengths.

    Args:
        prompts_grow: an environment may add to prompts, up to `max_prompt_tokens`.
    """
    limit = "max_tokens" if sampling.max_turns == 1 else "max_episode_tokens"
    trained = sampling.max_completion_tokens, f"rollout.sampling.{limit}"
    evaluated = eval_sampling.max_completion_tokens, f"rollout.evaluation.sampling.{limit}"
    return [
        LengthRequirement(
            f"{other.name} {split}",
            prompts,
            *(trained if split == "train" else evaluated),
            min_prompt_tokens=other.reading.max_prompt_tokens if prompts_grow else 0,
        )
        for other in data.validated
        for split, prompts in other.prompts.items()
        if prompts
    ]


def check_lengths(model_folder: str, sets: Sequence[LengthRequirement]) -> None:
    """Refuse a set whose longest prompt and completion exceed the model's context. Reads only the model's config.

    Raises:
        UserError: names the prompt, and which option to lower to what.
    """
    context = context_length(load_model_config(model_folder))
    for requirement in sets:
        if context is None or requirement.max_sequence_tokens <= context:
            continue
        tokens = requirement.max_sequence_tokens - requirement.max_tokens
        said = f"prompt {requirement.longest.sample.id} has {tokens} tokens"
        if tokens > len(requirement.longest.token_ids):
            said = f"the environment adds to prompts, up to {requirement.prompt_option}={tokens} tokens"
        allowed_by_option = {
            requirement.prompt_option: context - requirement.max_tokens, requirement.option: context - tokens
        }  # fmt: skip
        lower = " or ".join(f"{option} to {allowed}" for option, allowed in allowed_by_option.items() if allowed > 0)
        raise UserError(
            f"{requirement.name}: {said}, which with {requirement.option}={requirement.max_tokens} is more than the "
            f"model's context of {context} tokens; lower {lower or ' and '.join(allowed_by_option)}, or raise it by "
            "model.config_overrides"
        )


def within_context(model_folder: str, sets: Sequence[LengthRequirement]) -> int:
    """Return the longest sequence; warn about completions that the context truncates.

    Returns:
        Tokens of the longest sequence, prompt and completion together; at most the model's context.

    Raises:
        UserError: a prompt leaves no room for a completion.
    """
    context = context_length(load_model_config(model_folder))
    if context is None:
        return max(requirement.max_sequence_tokens for requirement in sets)
    for requirement in sets:
        tokens = len(requirement.longest.token_ids)
        if tokens >= context:
            raise UserError(
                f"{requirement.name}: prompt {requirement.longest.sample.id} has {tokens} tokens, which leaves no room "
                f"in the model's context of {context} tokens; lower {requirement.prompt_option} to {context - 1}"
            )
        cut = sum(len(prompt.token_ids) + requirement.max_tokens > context for prompt in requirement.prompts)
        if cut:
            _log.warning(
                "%s: %d of %d prompts and %d new tokens do not fit into the model's context of %d tokens; their "
                "completions end there, after %d tokens at the least",
                requirement.name, cut, len(requirement.prompts), requirement.max_tokens, context, context - tokens,
            )  # fmt: skip
    return min(context, max(requirement.max_sequence_tokens for requirement in sets))


def context_length(config: Any) -> int | None:
    """Return the longest sequence that a model's positions support, as vLLM computes it; None if the config does not
    say.

    `linear` and `dynamic` RoPE scaling multiply `max_position_embeddings`; for other kinds, and for Gemma 3, it already
    includes the factor.
    """
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if length is None:
        return None
    ropes: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    kinds = [ropes, *(value for value in ropes.values() if isinstance(value, dict))]  # one, or one per layer type
    factors = [kind.get("factor") or 1 for kind in kinds if kind.get("rope_type") in ("linear", "dynamic")]
    return int(length * (1 if "gemma3" in text.model_type else max(factors, default=1)))


def check_routes(module: RLVRModule, engine: RolloutEngine, sampling: Sampling, device: str) -> None:
    """Refuse `rollout.replay_routes` for a model, an engine or settings that it is not for. Reads only the model's
    config.

    Args:
        sampling: of training completions. device: the trainer's.

    Raises:
        UserError: names the reason.
    """
    layers, teacher = layer_configs(load_model_config(module.model_folder)), module.teachers.options
    is_own_teacher = teacher is not None and teacher.model is None and teacher.ema is None
    refuse_all(
        f"rollout.replay_routes: {reason}; leave the option off"
        for wrong, reason in (
            (not any(map(has_experts, layers)), "the model has no experts among which tokens choose"),
            (module.compute.torch_compile is True, "layers that model.compute.torch_compile compiles cannot replay"),
            (is_own_teacher, "a policy that is its own teacher without an average (model.teacher.ema) reads another "
                             "prompt, whose experts are unknown"),
        )
        if wrong
    )  # fmt: skip
    engine.check_routes(device, sampling)


SLOW = 4.0
"""Slowdown of bfloat16 above which a warning is given."""


def check_sizes(
    module: RLVRModule, engine: RolloutEngine, sampling: Sampling, group_size: int, staleness: int, prompts: int,
    ranks: int, precision: str = "32-true", device: str = "cpu",
) -> None:  # fmt: skip
    """Check the settings against each other.

    Args:
        sampling: of training completions. group_size: completions per prompt.
        staleness: how many iterations old the weights that sampled a token may be.
        prompts: prompts per step, over all ranks.
        ranks: number of processes.
        precision, device: the trainer's.

    Raises:
        UserError: sizes do not divide or are too small or too large, or the sampling, precision or staleness is not
            supported; a message for each.
    """
    check_all(
        lambda: refuse_all(_wrong_sizes(module, sampling, group_size, prompts, ranks, precision)),
        lambda: engine.check_hardware(device, compute_dtype(precision)),
        lambda: _check_staleness(module, engine, staleness, prompts, precision, device) if staleness else None,
    )


def _wrong_sizes(
    module: RLVRModule, sampling: Sampling, group_size: int, prompts: int, ranks: int, precision: str
) -> Iterator[str]:
    """Yield what is wrong with the sizes, the sampling and the precision, a line each."""
    if sampling.truncated:
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
    if precision not in PRECISIONS:
        yield (
            f"trainer.precision: {precision} is not supported: the weights are kept in float32; "
            f"use {' or '.join(PRECISIONS)}"
        )


def log_sizes(
    module: RLVRModule, engine: RolloutEngine, group_size: int, prompts: int, ranks: int, precision: str, device: str,
    longest: int = 0,
) -> None:  # fmt: skip
    """Log the sizes that follow from the settings, and warn of those that are slow or do not fit the algorithm.

    Args:
        group_size, prompts, ranks, precision, device: as `check_sizes` takes them.
        longest: the most tokens of a training prompt and its completion; a micro-batch has at least one whole.
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
    correction = module.choose_correction(engine.is_exact(compute_dtype(precision))).mode
    if engine.quantized and correction == "none" and not module.uses_rollout:
        _log.warning(
            "engine %s computes in 8 bits, so it does not sample from the trained policy: use "
            "model.importance.correction: token_truncate", engine.name,
        )  # fmt: skip
    budget, more = module.tokens_per_microbatch, ""
    if longest > budget:
        more = (
            " (the longest prompt with its completion alone, so more than "
            f"model.compute.tokens_per_microbatch={budget})"
        )
    _log.info(
        "%d prompts x %d completions = %d sequences per rollout: %d rank(s) x %d minibatch(es) of %d group(s), "
        "%d pass(es), at most %d tokens at once%s; engine %s, importance correction %s",
        prompts, group_size, prompts * group_size, ranks, module.updates_per_rollout,
        prompts // ranks // module.updates_per_rollout, module.epochs_per_rollout, max(budget, longest), more,
        engine.name, correction,
    )  # fmt: skip


def _check_staleness(
    module: RLVRModule, engine: RolloutEngine, staleness: int, prompts: int, precision: str, device: str
) -> None:
    """Refuse settings that are incompatible with generating during training.

    Raises:
        UserError: names the setting.
    """
    correction = module.choose_correction(engine.is_exact(compute_dtype(precision)))
    reason = None
    if engine.shares_weights:
        reason = f"engine {engine.name} decodes with the weights being trained; use vllm"
    elif engine.in_process and device == "cuda":
        reason = f"engine {engine.name} needs the GPU that is training; use VLLMServerEngine on other GPUs"
    elif not engine.concurrent and staleness > 1:
        reason = f"engine {engine.name} takes weights only between rollouts, so it is at most 1; use VLLMServerEngine"
    elif module.samples_reference:
        reason = "fresh reference rollouts need the engine at the same time; use model.reference_rollouts: pool"
    elif not correction.is_bounded and not module.uses_rollout:
        reason = (
            f"the rollouts are up to {staleness} iteration(s) old; set model.importance.correction, with "
            "model.importance.cap"
        )
    if reason:
        raise UserError(f"rollout.staleness: {reason}")
