"""The losses of the installed TRL, as plain functions.

`python -m lit_rlvr.conformance --loss lit_rlvr.conformance.trl:dapo --expect DAPO` measures one. They call
`GRPOTrainer._compute_loss`, with a made-up trainer that has its settings and no model. Settings that `GRPOConfig`
shares with the published formula have its values.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

SETTINGS = {
    "loss_type": "grpo", "importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2,
    "off_policy_mask_threshold": None, "use_vllm": False, "vllm_importance_sampling_correction": True,
    "aux_loss_enabled": False, "top_entropy_quantile": 1.0, "max_completion_length": 9,
    "current_gradient_accumulation_steps": 1, "_entropy_bonus_enabled": False, "use_adaptive_entropy": False,
    "entropy_coef": 0.0, "get_off_policy_mask": GRPOTrainer.get_off_policy_mask,
    "get_gamma_weights": lambda **inputs: GRPOTrainer.get_gamma_weights(**inputs).detach(),  # it has no gradient anyway
}  # fmt: skip
"""Attributes of the trainer."""
ARGS = {
    "delta": None, "use_bias_correction_kl": True, "steps_per_generation": 1, "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05, "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
}  # fmt: skip
"""Attributes of its `args`."""


def compute_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    num_tokens: int,
    world_size: int = 1,
    entropy: Tensor | None = None,
    others: dict[str, Tensor | None] | None = None,
    **settings: Any,
) -> Tensor:
    """Return TRL's loss () of some rows.

    Args:
        logp: (b, T) log-probabilities of the policy.
        old_logp: (b, T) log-probabilities before the step.
        advantages: (b, 1) or (b,) advantages.
        mask: (b, T) bool, True = in the loss.
        num_tokens: tokens in the loss, over all micro-batches and ranks.
        world_size: number of ranks.
        entropy: (b, T) entropies; None = not given.
        others: further inputs of `_compute_loss`, by its names for them.
        settings: attributes of the trainer or of its `args` that differ from `SETTINGS` and `ARGS`.
    """
    args = SimpleNamespace(**{name: settings.pop(name, value) for name, value in ARGS.items()})
    trainer: Any = SimpleNamespace(
        **SETTINGS | settings,
        args=args,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=world_size, gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            logp,
            torch.zeros_like(logp) if entropy is None else entropy,
            None,
        ),
    )
    tokens = mask.long()
    inputs = {
        "prompt_ids": tokens[:, :1],
        "prompt_mask": tokens[:, :1],
        "completion_ids": tokens,
        "completion_mask": tokens,
        "advantages": advantages.flatten(),
        "old_per_token_logps": old_logp,
        "num_items_in_batch": torch.tensor(num_tokens),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs | (others or {}))


def grpo(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    num_tokens: int,
    num_microbatches: int,
    world_size: int,
    max_tokens: int,
    loss_type: str = "grpo",
    importance_sampling_level: str = "token",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
) -> Tensor:
    """Return TRL's loss () of some rows, in an optimizer step that is a whole generation batch.

    Args:
        logp: (b, T) log-probabilities of the policy.
        old_logp: (b, T) log-probabilities before the step.
        advantages: (b, 1) or (b,) advantages.
        mask: (b, T) bool, True = in the loss.
        num_tokens: tokens in the loss, over all micro-batches and ranks.
        num_microbatches: micro-batches of the step on one rank.
        world_size: number of ranks.
        max_tokens: the configured longest completion.
        loss_type: TRL's option of this name.
        importance_sampling_level: TRL's option of this name.
        epsilon_low: TRL's `epsilon`.
        epsilon_high: TRL's option of this name.
    """
    return compute_loss(
        logp,
        old_logp,
        advantages,
        mask,
        num_tokens,
        world_size,
        current_gradient_accumulation_steps=num_microbatches,
        steps_per_generation=num_microbatches,
        max_completion_length=max_tokens,
        loss_type=loss_type,
        importance_sampling_level=importance_sampling_level,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
    )


bnpo = partial(grpo, loss_type="bnpo", epsilon_high=0.28)
dapo = partial(grpo, loss_type="dapo", epsilon_high=0.28)
dr_grpo = partial(grpo, loss_type="dr_grpo")
cispo = partial(grpo, loss_type="cispo", epsilon_high=5.0)
sapo = partial(grpo, loss_type="sapo")
vespo = partial(grpo, loss_type="vespo")
luspo = partial(grpo, loss_type="luspo", importance_sampling_level="sequence", epsilon_low=2e-3, epsilon_high=2.5e-3)
gspo = partial(grpo, importance_sampling_level="sequence", epsilon_low=3e-4, epsilon_high=4e-4)
