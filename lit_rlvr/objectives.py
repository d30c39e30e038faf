"""The pure mathematics of the losses: ratios, clips, KL, aggregation, importance weights.

Tensors in, tensors out. Shapes: B sequences, T completion positions; `mask` is bool, True = in the loss.
All losses are minimised, and every one is a *sum* over rows of terms that already carry their share of
the global normaliser (`token_weight`, `row_weight`), so that the loss of a batch is the sum of the losses
of its pieces, however it is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean", "group_token_mean", "constant"]
ImportanceCorrection = Literal["none", "token_truncate", "token_mask", "sequence_mask"]
Stats = dict[str, Tensor]


@dataclass
class LossInputs:
    """What an objective sees of some rows of one optimizer step.

    Args:
        logp: (B, T) log-probabilities under the current policy; the only tensor with a gradient.
        old: (B, T) under the policy at rollout time, as the trainer computes it.
        mask: (B, T) bool.
        advantages: (B, 1), constant.
        token_weight: (B, T) share of each token in the loss (`aggregation_weights`, times the
            train/inference importance weight); 0 where masked.
        row_weight: (B,) share of each sequence in a sequence-level loss (1/B times the importance weight).
        prompt: (B,) long, each row's prompt as an index into the whole rollout's `GroupBatch` (all ranks).
        ref: (B, T) under the reference policy; None when no KL term is wanted.
        entropy: (B, T) exact entropy of the policy at each position; None when it is not computed.
        kl_weight: (B, T) share of each token in the KL term (no importance weight); None without a reference.
    """

    logp: Tensor
    old: Tensor
    mask: Tensor
    advantages: Tensor
    token_weight: Tensor
    row_weight: Tensor
    prompt: Tensor
    ref: Tensor | None = None
    entropy: Tensor | None = None
    kl_weight: Tensor | None = None


def log_ratio(logp: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """`logp - old` (B, T), 0 where masked; bounded so that its exponential is finite in this dtype."""
    bound = 0.5 * math.log(torch.finfo(logp.dtype).max)
    return torch.where(mask, logp - old, 0.0).clamp(-bound, bound)


def ratio(logp: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """`w = exp(logp - old)` (B, T), 1 where masked."""
    return log_ratio(logp, old, mask).exp()


def clipped_surrogate(
    x: LossInputs, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> tuple[Tensor, Stats]:
    """PPO's clipped surrogate, `min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)`, per token (B, T).

    Source: Schulman et al. 2017, eq. 7; with `dual_clip = c` the value is bounded below by `c A` where
    A < 0 (Ye et al. 2020, eq. 5).

    Returns:
        The surrogate, and the counts of tokens that the lower and the upper clip cut off.
    """
    w = ratio(x.logp, x.old, x.mask)
    unclipped = w * x.advantages
    value = torch.minimum(unclipped, w.clamp(1 - clip_low, 1 + clip_high) * x.advantages)
    if dual_clip is not None:
        value = torch.where(x.advantages < 0, torch.maximum(value, dual_clip * x.advantages), value)
    return value, clip_counts(w, x, clip_low, clip_high)


def clip_counts(w: Tensor, x: LossInputs, clip_low: float, clip_high: float) -> Stats:
    """Tokens whose gradient a clip of the ratio `w` (B, T) removes: counts, not fractions."""
    low = (w < 1 - clip_low) & (x.advantages < 0) & x.mask
    high = (w > 1 + clip_high) & (x.advantages > 0) & x.mask
    return {"clip_low": low.sum(), "clip_high": high.sum()}


def k3(logp: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    """Schulman's unbiased KL estimate `exp(ref - logp) - (ref - logp) - 1` per token (B, T), 0 where masked.

    Source: DeepSeekMath (GRPO), eq. 4.
    """
    d = log_ratio(ref, logp, mask)
    return d.exp() - d - 1


def masked_sum(values: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """`sum_i sum_t weight * values` over the unmasked (B, T) positions; masked values never reach it."""
    return (torch.where(mask, values, 0.0) * weight).sum()


def aggregation_weights(
    mask: Tensor, group_size: int, aggregation: Aggregation, sequences: float, tokens: float, max_tokens: int
) -> Tensor:
    """Each token's share of the loss (B, T); 0 where masked.

    Args:
        mask: (B, T) bool of whole groups, row = p * group_size + g.
        aggregation: `sequence_mean` 1/(B n_i); `token_mean` 1/N; `group_token_mean` 1/(P sum_g n);
            `constant` 1/(B T_max).
        sequences: B over all ranks and micro-batches of this optimizer step (empty rows count).
        tokens: N over all ranks and micro-batches of this optimizer step.
        max_tokens: T_max, the configured longest completion.
    """
    m = mask.to(torch.get_default_dtype())
    if aggregation == "token_mean":
        return m / max(tokens, 1.0)
    if aggregation == "constant":
        return m / (sequences * max_tokens)
    lengths = m.sum(1, keepdim=True)  # (B, 1)
    if aggregation == "sequence_mean":
        return m / (sequences * lengths.clamp(min=1))
    per_group = lengths.view(-1, group_size).sum(1).repeat_interleave(group_size)[:, None]  # (B, 1)
    return m * group_size / (sequences * per_group.clamp(min=1))


def importance_weights(
    old: Tensor, engine: Tensor, mask: Tensor, mode: ImportanceCorrection, cap: float
) -> tuple[Tensor, Tensor]:
    """Weights that correct for an engine whose log-probabilities differ from the trainer's.

    Args:
        old, engine: (B, T) log-probabilities of the sampled tokens, the trainer's and the engine's.
        mode: `token_truncate` min(w, cap) per token; `token_mask` drops tokens with w outside
            [1/cap, cap]; `sequence_mask` drops rows whose geometric mean of w is outside it.
        cap: the bound C of truncated importance sampling.

    Returns:
        Token weights (B, T), and row weights (B,) for sequence-level losses: the truncated geometric mean
        of the row's token ratios (masked like its tokens for `sequence_mask`; 1 for `none`).
    """
    d = log_ratio(old, engine, mask)
    mean = d.sum(1) / mask.sum(1).clamp(min=1)  # (B,)
    inside = mean.abs() <= math.log(cap)
    if mode == "none":
        return torch.ones_like(d), torch.ones_like(mean)
    if mode == "sequence_mask":
        return inside[:, None].to(d.dtype).expand_as(d), inside.to(d.dtype)
    rows = mean.exp().clamp(max=cap)
    if mode == "token_mask":
        return (d.abs() <= math.log(cap)).to(d.dtype), rows
    return d.exp().clamp(max=cap), rows
