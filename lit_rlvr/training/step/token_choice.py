"""The choice of tokens of a whole optimizer step, over all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.distributed.collectives import gather_rows, index_tensor, rank
from lit_rlvr.objectives import GOLDEN_RATIO, StepTokens
from lit_rlvr.training.loss import LossModule
from lit_rlvr.training.step.prepared import PreparedRollout
from lit_rlvr.types import Rollout


def chosen_tokens(
    prepared: PreparedRollout, rows: list[int], mask: Tensor, rollout_logp: Tensor, algorithm: LossModule
) -> tuple[Tensor | None, Tensor | None]:
    """Return the results (B, T) of `LossModule.choose_tokens` over all ranks' tokens of a step; None = it is not asked.

    Collective: call it on every rank.

    Args:
        prepared: the rollout.
        rows: this rank's rows in the step.
        mask: (B, T) bool, the tokens in the loss.
        rollout_logp: (B, T) log-probabilities at sampling time.
        algorithm: chooses.
    """
    if not algorithm.needs_step_tokens:
        return None, None
    assert prepared.old_logp is not None and prepared.entropy is not None
    in_step = torch.zeros_like(mask)
    index = index_tensor(rows, mask.device)
    in_step[index] = mask[index]
    advantages = prepared.advantages.to(mask.device).expand(mask.shape)
    chance = chances(prepared.rollout).to(mask.device)
    fields = (prepared.old_logp, rollout_logp, prepared.entropy, advantages, chance)
    columns = torch.stack([values[in_step].double() for values in fields])  # (5, N of this rank)
    sizes = []
    for size in gather_rows(torch.tensor([columns.shape[1]])):
        sizes.append(int(size))
    padded = torch.nn.functional.pad(columns, (0, max(sizes) - columns.shape[1]))
    parts = gather_rows(padded[None])  # (ranks, 5, the longest)
    all_tokens = torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)  # (5, N)
    first = sum(sizes[: rank()])
    results: list[Tensor | None] = []
    for chosen in algorithm.choose_tokens(StepTokens(*(values.clone() for values in all_tokens))):
        if chosen is None:
            results.append(None)
            continue
        result = torch.zeros_like(mask)
        result[in_step] = chosen[first : first + columns.shape[1]]
        results.append(result)
    return results[0], results[1]


def chances(rollout: Rollout) -> Tensor:
    """Return a number in [0, 1) for each token (B, T) float64, which depends on its prompt, completion and position."""
    repeats = rollout.repeats or [0] * len(rollout.prompts)
    first = []
    for prompt, repeat in zip(rollout.prompts, repeats, strict=True):
        for g in range(rollout.group_size):
            first.append(derive_seed("chance", prompt.sample.id, repeat, g) / 2**62)
    positions = torch.arange(rollout.mask.shape[1], dtype=torch.float64)
    return (torch.tensor(first, dtype=torch.float64)[:, None] + GOLDEN_RATIO * positions).frac()
