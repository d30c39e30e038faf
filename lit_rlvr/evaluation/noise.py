"""The gradient's noise scale of a model, from completions that were sampled already, without training it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_rlvr.common.files import available_memory
from lit_rlvr.policy.loading import load_model_config
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.rollout.assemble import assemble, join
from lit_rlvr.sampling import Sampling
from lit_rlvr.sizing.memory import shape_of
from lit_rlvr.training.step.memory import TokenBudget
from lit_rlvr.types import Completion, Prompt

if TYPE_CHECKING:
    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.rollout import RolloutCallback

ScoredGroup = tuple[list[Completion], Scores]
"""Completions of a prompt, and their scores (1, G)."""
STEP_PROMPTS, MOST_STEPS = 8, 32
"""Prompts of a step on which the noise scale is measured, and the most steps."""
BYTES = 16
"""Bytes of a parameter in training: weight, gradient and the optimizer's two moments in float32."""


class ScoredRollouts(Callback):
    """Gives each batch the completions of its prompts.

    Args:
        groups: sample id -> completions and scores.
        rollout: the settings of the rollouts.
        sampling: how the completions were sampled.
    """

    def __init__(self, groups: Mapping[str, ScoredGroup], rollout: RolloutCallback, sampling: Sampling) -> None:
        self.groups = groups
        self.rollout = rollout
        self.sampling = sampling

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        sampling = self.sampling.with_banned(pl_module.policy.placeholder_ids)
        rollouts = []
        for prompt in batch.prompts:
            completions, scores = self.groups[prompt.sample.id]
            rollouts.append(
                assemble(
                    [prompt],
                    [completions],
                    scores,
                    sampling,
                    self.rollout.mask_truncated,
                    self.rollout.engine.exact,
                    pl_module.updates,
                )
            )
        batch.rollout = reduce(join, rollouts)


def first_completions(group: ScoredGroup, size: int) -> ScoredGroup:
    """Return the first `size` completions of a group, with their scores."""
    completions, scores = group
    tensors = {}
    for name in ("rewards", "correct", "has_correct", "failed", "stopped"):
        tensors[name] = getattr(scores, name)[:, :size]
    lists: Any = {}
    for name in ("statuses", "details"):
        lists[name] = [getattr(scores, name)[0][:size]]
    parts = {}
    for name, part in scores.parts.items():
        parts[name] = part[:, :size]
    return completions[:size], replace(scores, **tensors, **lists, parts=parts)


def _fits_in_memory(folder: str, device: torch.device) -> bool:
    """Return whether a model can be trained in half of the memory that is free."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = available_memory()
    return BYTES * shape_of(load_model_config(folder)).parameters < free / 2


def measure_noise(
    module: RLVRModule,
    data: PromptDataModule,
    rollout: RolloutCallback,
    prompts: Sequence[Prompt],
    groups: Mapping[str, ScoredGroup],
    sampling: Sampling,
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
) -> float | None:
    """Return the noise scale in prompts; None if it was not measured.

    That is so with fewer than two steps of prompts, without a signal, with an environment or a teacher, and for a model
    that is too large to be trained in half of the free memory. The steps have the learning rate 0, and micro-batches of
    one group. Do not train the module afterwards.

    Args:
        module: the algorithm with its model.
        data: the DataModule of the prompts.
        rollout: the settings of the rollouts.
        prompts: the prompts to measure on.
        groups: their completions and scores, of a run's group size.
        sampling: how the completions were sampled.
        dtype: the data type in which the run computes.
        device: the device on which it trains.
        seconds: the most time; a step under way ends later.
    """
    steps = min(len(prompts) // STEP_PROMPTS, MOST_STEPS)
    is_plain = rollout.environment is None and module.teachers.options is None
    if steps < 2 or not is_plain or not _fits_in_memory(module.model_folder, device):
        return None
    longest = 0
    for prompt in prompts:
        completions, _ = groups[prompt.sample.id]
        longest = max(longest, len(prompt.token_ids) + sum(completion.length for completion in completions))
    module.budget = TokenBudget(min(longest, module.budget.tokens))
    module.lr = 0.0
    module.updates_per_rollout = module.epochs_per_rollout = 1
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            max_epochs=-1,
            max_time={"seconds": max(1, int(seconds))},
            accelerator=device.type,
            strategy=SingleDeviceStrategy(device),
            precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true",
            limit_val_batches=0,
            callbacks=[ScoredRollouts(groups, rollout, sampling)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data.on_prompts(prompts, STEP_PROMPTS))
    return module.noise_scale.prompts
