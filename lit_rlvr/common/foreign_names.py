"""Options of other projects that users know, and ours for them."""

from __future__ import annotations

from collections.abc import Iterable

_MODEL = "model.init_args"
_SAMPLING = "rollout.sampling"

OPTIONS_OF_OTHERS = {
    "learning_rate": f"{_MODEL}.lr", "weight_decay": f"{_MODEL}.optim.weight_decay",
    "max_grad_norm": f"{_MODEL}.optim.max_grad_norm",
    "beta": f"{_MODEL}.kl.coef", "kl_loss_coef": f"{_MODEL}.kl.coef",
    "epsilon": f"{_MODEL}.clip_low", "clip_ratio_low": f"{_MODEL}.clip_low", "epsilon_high": f"{_MODEL}.clip_high",
    "clip_ratio_high": f"{_MODEL}.clip_high", "delta": f"{_MODEL}.dual_clip", "clip_ratio_c": f"{_MODEL}.dual_clip",
    "num_iterations": f"{_MODEL}.epochs_per_rollout", "ppo_epochs": f"{_MODEL}.epochs_per_rollout",
    "steps_per_generation": f"{_MODEL}.updates_per_rollout", "ppo_mini_batch_size": f"{_MODEL}.updates_per_rollout",
    "per_device_train_batch_size": f"{_MODEL}.compute.tokens_per_microbatch",
    "gradient_accumulation_steps": f"{_MODEL}.compute.tokens_per_microbatch",
    "ppo_micro_batch_size_per_gpu": f"{_MODEL}.compute.tokens_per_microbatch",
    "entropy_coeff": f"{_MODEL}.loss.entropy_coef",
    "use_bias_correction_kl": f"{_MODEL}.kl.bias_correction", "peft_config": f"{_MODEL}.lora",
    "lora_rank": f"{_MODEL}.lora", "use_liger_kernel": f"{_MODEL}.compute.liger",
    "vllm_importance_sampling_mode": f"{_MODEL}.importance.correction",
    "vllm_importance_sampling_clip_max": f"{_MODEL}.importance.cap",
    "rollout_token_veto_threshold": f"{_MODEL}.importance.veto",
    "off_policy_mask_threshold": f"{_MODEL}.importance.off_policy_threshold",
    "num_generations": "rollout.group_size", "num_generations_eval": "rollout.evaluation.samples",
    "max_staleness": "rollout.staleness",
    "mask_truncated_completions": "rollout.mask_truncated", "use_vllm": "rollout.engine",
    "temperature": f"{_SAMPLING}.temperature", "max_completion_length": f"{_SAMPLING}.max_tokens",
    "max_response_length": f"{_SAMPLING}.max_tokens", "max_tool_calling_iterations": f"{_SAMPLING}.max_turns",
    "max_assistant_turns": f"{_SAMPLING}.max_turns", "bf16": "trainer.precision",
}  # fmt: skip
"""Option of TRL or verl -> ours, as docs/coming_from_trl.md explains them."""


def our_option_for(name: str, known: Iterable[str]) -> str | None:
    """Return our option for one of TRL or verl, as it is called among the known ones, or if they have its group."""
    option = OPTIONS_OF_OTHERS.get(name.rpartition(".")[2].lstrip("-"), "")
    parts = option.split(".")
    named = {}
    for other in known:
        named[other.lstrip("-")] = other
    for start in range(len(parts)):
        end = ".".join(parts[start:])
        if end in named:
            return named[end]
    if parts[0] in named:
        return option
    return None


COUNTED = {"trainer.val_check_interval": "rollouts", "trainer.check_val_every_n_epoch": "epochs"}
"""Options of Lightning's Trainer for when to validate -> what they would count."""


def counted_hint(option: str) -> str:
    """Return a hint about an option of Lightning's for when to validate, by its dotted key; "" for others."""
    if option not in COUNTED:
        return ""
    return (
        f"; it would count {COUNTED[option]}, but trainer.max_steps counts optimizer steps: set "
        "rollout.validate_every_rollouts instead"
    )
