"""The pure mathematics of the losses: ratios, clips, KL, aggregation, importance weights.

Tensors in, tensors out. Shapes: B sequences, T completion positions; `mask` is bool, True = in the loss.
Training minimises all losses. Each is a *sum* over rows of terms that already include their share of the global
normaliser (`token_weight`, `row_weight`), so the loss of a batch is the sum of the losses of its micro-batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean", "group_token_mean", "constant", "token_sum"]
KLEstimator = Literal["k1", "k2", "k3"]
Divergence = Literal["tv", "kl"]
ImportanceCorrection = Literal[
    "none",
    "token_truncate",
    "token_mis",
    "token_reject",
    "sequence_truncate",
    "sequence_mis",
    "sequence_reject",
    "geometric_reject",
]
Stats = dict[str, Tensor]
"""Metric name -> sum over tokens, logged as a mean."""
OWN_STATS = (
    "loss", "tokens", "entropy", "observed_tokens", "engine_difference", "engine_ratio", "engine_ratio_squared",
    "effective_sample_size", "importance_dropped", "weight", "weight_squared", "expert_flips", "lr", "grad_norm",
    "skipped_steps",
)  # fmt: skip
"""Names of what every run measures of a step; the statistics of an objective and the metrics of terms have others."""


@dataclass
class LossInputs:
    """The input of an objective: some rows of one optimizer step.

    Args:
        logp: (B, T) log-probabilities under the current policy; only this, `divergence`, `expert_imbalance` and, where
            the loss or a term needs it, `entropy` have a gradient.
        old_logp: (B, T) log-probabilities under the policy at the beginning of the iteration, by the trainer
            (interpolated with `importance.prox_logp_method: loglinear`).
        mask: (B, T) bool.
        advantages: (B, 1), or (B, T) if the estimator gives one for each token; constant.
        token_weight: (B, T) share of each token in the loss (`aggregation_weights`, times the
            train/inference importance weight); 0 where masked, and outside `loss.top_entropy_quantile`.
        row_weight: (B,) share of each sequence in a sequence-level loss (1/B times the importance weight).
        prompt: (B,) long, each row's prompt as an index into the whole rollout's `GroupBatch` (all ranks).
        plain_weight: (B, T) token_weight without the importance weight: each token's share in the KL and entropy
            terms.
        rollout_logp: (B, T) log-probabilities that the tokens were sampled with, as the engine reports them.
        ref_logp: (B, T) log-probabilities under the reference policy; None unless the loss or a term needs it.
        entropy: (B, T) exact entropy of the policy at each position; None if it is not computed.
        selected: (B, T) bool, the tokens that the loss's `select_tokens` has chosen; None if it has none.
        correct: (B,) bool, True for completions that a reward calls right; None unless the loss or a term needs it.
        divergence: (B, T) divergence from the teacher at each position, which has a gradient; None without that term.
        expert_imbalance: (B, T) loss of the use of experts at each position; None without that term.
        row: (B,) long, each row's number p * G + g in the whole rollout (all ranks), for values that `observe` kept.
        observation_logp: (B, T) log-probabilities of the tokens that an environment answered, which have a gradient; 0
            elsewhere. None, as the next two, without a term that needs it.
        observed: (B, T) bool, these tokens; none of them is in `mask`.
        observation_weight: (B, T) share of each of them in such a term.
    """

    logp: Tensor
    old_logp: Tensor
    mask: Tensor
    advantages: Tensor
    token_weight: Tensor
    row_weight: Tensor
    prompt: Tensor
    plain_weight: Tensor
    rollout_logp: Tensor
    ref_logp: Tensor | None = None
    entropy: Tensor | None = None
    selected: Tensor | None = None
    correct: Tensor | None = None
    divergence: Tensor | None = None
    expert_imbalance: Tensor | None = None
    row: Tensor | None = None
    observation_logp: Tensor | None = None
    observed: Tensor | None = None
    observation_weight: Tensor | None = None

    def scale_tokens(self, factor: Tensor) -> LossInputs:
        """Return the inputs with each token's share in the loss multiplied by a constant factor (B, T)."""
        return replace(self, token_weight=self.token_weight * factor)


LOG_ZERO = -1e30
"""A finite logarithm whose exponential is 0."""
GOLDEN_RATIO = 0.6180339887498949
"""The fractional parts of its multiples are spread evenly."""


@dataclass
class StepTokens:
    """All tokens in the loss of one optimizer step, of all ranks, under the policy at the beginning of the iteration.

    Args:
        old_logp: (N,) log-probabilities under that policy.
        rollout_logp: (N,) log-probabilities that the tokens were sampled with.
        entropy: (N,) exact entropy of that policy.
        advantages: (N,) of each token.
        chance: (N,) in [0, 1), a number of each token for random choices, which depends on its prompt, completion and
            position alone; by default on the first digits of `old_logp`.
    """

    old_logp: Tensor
    rollout_logp: Tensor
    entropy: Tensor
    advantages: Tensor
    chance: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.chance is None:
            self.chance = ((self.old_logp * 1000).round() * GOLDEN_RATIO).frac().abs()


def covariances(step: StepTokens) -> Tensor:
    """Return each token's part (N,) of the covariance of log-probability and advantage.

    A step changes the entropy by it. Source: Cui et al. 2025 (the entropy mechanism, arXiv 2505.22617), section 4.
    """
    advantages = step.advantages - step.advantages.mean()
    if step.advantages.max() == step.advantages.min():
        advantages = torch.zeros_like(advantages)  # not the rounding error of the mean
    return advantages * (step.old_logp - step.old_logp.mean())


TIE = 1e-5
"""A value that differs from a threshold by this share of the threshold equals it. The completions of a prompt may begin
alike, and their equal values differ by rounding, which depends on micro-batches."""


def largest(values: Tensor, count: int, chance: Tensor | None = None) -> Tensor:
    """Return (N,) bool, True for the `count` largest values, at least one.

    The threshold is the smallest of these; values that differ from it by rounding are tied with it.

    Args:
        values: (N,).
        count: how many to take.
        chance: (N,) in [0, 1): among values tied with the threshold, those with the largest chance are taken, so that
            exactly `count` are; None = all tied ones are taken.
    """
    count = min(max(count, 1), len(values))
    last = values.topk(count).values[-1]
    tied = (values - last).abs() <= TIE * last.abs()
    if chance is None:
        return (values > last) | tied
    chosen = (values > last) & ~tied
    drawn = torch.where(tied, chance, -1.0).topk(count - int(chosen.sum())).indices
    return chosen.index_fill(0, drawn, True)


def log_ratio(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """Return `logp - old_logp` (B, T), 0 where masked; bounded so that its exponential is finite in this dtype."""
    bound = 0.5 * math.log(torch.finfo(logp.dtype).max)
    return torch.where(mask, logp - old_logp, 0.0).clamp(-bound, bound)


def ratio(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """Return `w = exp(logp - old_logp)` (B, T), 1 where masked."""
    return log_ratio(logp, old_logp, mask).exp()


def clipped_surrogate(
    w: Tensor, x: LossInputs, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> tuple[Tensor, Stats]:
    """Return PPO's clipped surrogate, `min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)`, in the shape of the ratio w.

    Source: Schulman et al. 2017, eq. 7; with `dual_clip = c`, `c A` is a lower bound where A < 0 (Ye et al. 2020,
    eq. 5).

    Args:
        w: (B, T) ratios of tokens, or (B, 1) of sequences.
        x: the rows.
        clip_low: the ratio is clipped at 1 - clip_low.
        clip_high: the ratio is clipped at 1 + clip_high.
        dual_clip: c; None = no such bound.

    Returns:
        The surrogate, and the numbers of tokens that `clip_low` and `clip_high` clip (not those that `dual_clip` does).
    """
    value = torch.minimum(w * x.advantages, w.clamp(1 - clip_low, 1 + clip_high) * x.advantages)
    if dual_clip is not None:
        value = torch.where(x.advantages < 0, torch.maximum(value, dual_clip * x.advantages), value)
    return value, clip_counts(w, x, 1 - clip_low, 1 + clip_high)


def clipped_log_ratio(
    x: LossInputs, low: float | Tensor, high: float | Tensor, dual_clip: float | None = None
) -> tuple[Tensor, Stats]:
    """Return the log-ratio (B, T) that the surrogate's `min` selects; 0 where masked or A = 0.

    `min(d, high)` where A > 0, `max(d, low)` where A < 0, `d = logp - old_logp`: the clip of `clipped_surrogate` in log
    space, without forming the ratio.

    Args:
        x: the rows.
        low, high: the bounds in log space, numbers or (B, 1).
        dual_clip: as in `clipped_surrogate`.
    """
    d = log_ratio(x.logp, x.old_logp, x.mask)
    negative = torch.clamp(d, min=low)
    if dual_clip is not None:
        negative = negative.clamp(max=math.log(dual_clip))
    chosen = torch.where(x.advantages > 0, torch.clamp(d, max=high), negative)
    return torch.where(x.mask & (x.advantages != 0), chosen, 0.0), clip_counts(d, x, low, high)


def clip_counts(w: Tensor, x: LossInputs, low: float | Tensor, high: float | Tensor) -> Stats:
    """Count the tokens that have no gradient because their ratio is clipped.

    Args:
        w: (B, T) ratios of tokens, or (B, 1) of sequences; or their logarithms.
        x: the rows.
        low, high: the bounds of w, numbers or (B, 1).
    """
    below = (w < low) & (x.advantages < 0) & x.mask
    above = (w > high) & (x.advantages > 0) & x.mask
    return {"clip_low": below.sum(), "clip_high": above.sum()}


def trust_region_divergence(
    logp: Tensor, rollout_logp: Tensor, mask: Tensor, kind: Divergence
) -> tuple[Tensor, Tensor]:
    """Return `pi - mu` and the divergence of two distributions over "this token or another one"; 0 where masked.

    Args:
        logp, rollout_logp: (B, T) log pi and log mu of the sampled tokens.
        mask: (B, T) bool.
        kind: `tv` (total variation) or `kl` (`KL(mu || pi)`).
    """
    logp = torch.where(mask, logp, 0.0)
    rollout_logp = torch.where(mask, rollout_logp, 0.0)
    pi = logp.exp()
    mu = rollout_logp.exp()
    if kind == "tv":
        return pi - mu, (pi - mu).abs()
    tiny = torch.finfo(pi.dtype).tiny
    others = (1 - mu) * (
        torch.log((-torch.expm1(rollout_logp)).clamp(min=tiny)) - torch.log((-torch.expm1(logp)).clamp(min=tiny))
    )
    return pi - mu, mu * (rollout_logp - logp) + others


def policy_gradient(x: LossInputs) -> tuple[Tensor, Stats]:
    """Return `-sum weight A logp`, the loss without a ratio. Source: Williams 1992 (REINFORCE)."""
    return -masked_sum(x.advantages * x.logp, x.token_weight, x.mask), {}


def vocabulary_divergence(student: Tensor, teacher: Tensor, beta: float, top_k: int | None = None) -> Tensor:
    """Return the divergence (N,) of two distributions S and T over the vocabulary, in nats.

    It is GKD's generalised Jensen-Shannon, `beta KL(T || M) + (1 - beta) KL(S || M)` with `M = beta T + (1 - beta) S`.
    At its ends, where that is 0, it is the limit of its quotient by beta or 1 - beta: `KL(T || S)` (forward) at 0,
    `KL(S || T)` (reverse) at 1. Source: Agarwal et al. 2023 (GKD, arXiv 2306.13649), eq. 1; TRL's
    `generalized_jsd_loss`.

    Args:
        student, teacher: (N, V) logits, -inf for tokens that both leave out. Output embeddings may be padded
            differently: V is then the smaller one, which covers all tokens.
        beta: weight of the teacher in M, in [0, 1].
        top_k: compare the probabilities of the student's k likeliest tokens and of all others together, which is at
            most the divergence over all; None = of every token.
    """
    size = min(student.shape[-1], teacher.shape[-1])
    # LOG_ZERO in place of -inf, because 0 times a finite number is 0
    s = student[:, :size].nan_to_num(math.nan, math.inf, LOG_ZERO).log_softmax(-1)
    t = teacher[:, :size].nan_to_num(math.nan, math.inf, LOG_ZERO).log_softmax(-1)
    if top_k is not None and top_k < size:
        likeliest = s.topk(top_k).indices
        s = _of_tokens_and_the_rest(s, likeliest)
        t = _of_tokens_and_the_rest(t, likeliest)
    if beta in (0, 1):
        if beta:
            return _kl(s, t)
        return _kl(t, s)
    middle = torch.logaddexp(s + math.log1p(-beta), t + math.log(beta))
    return beta * _kl(t, middle) + (1 - beta) * _kl(s, middle)


def _of_tokens_and_the_rest(logp: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities (N, k + 1) of some tokens (N, k), and of all others together, out of (N, V)."""
    rest = logp.scatter(1, tokens, LOG_ZERO).logsumexp(1, keepdim=True)
    return torch.cat([logp.gather(1, tokens), rest], 1)


def _kl(logp: Tensor, logq: Tensor) -> Tensor:
    return (logp.exp() * (logp - logq)).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B,) of each row's unmasked (B, T) values; 0 in an empty row."""
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def log_power_mean(log_values: Tensor, mask: Tensor, power: Tensor) -> Tensor:
    """Return `log [mean_t v^p]^(1/p)` (B,) of each row's unmasked values; at p = 0 its limit, the mean of `log v`.

    It neither overflows nor loses digits: if the powers differ much, a logsumexp is exact (and so is its gradient, a
    softmax); if they hardly differ, as for small p, it first divides `v` by its geometric mean.

    Args:
        log_values: (B, T) log v.
        mask: (B, T) bool.
        power: (B,) p, constant.
    """
    p = torch.where(power == 0, 1.0, power)  # (B,)
    center = masked_mean(log_values, mask)  # (B,)
    scaled = torch.where(mask, p[:, None] * (log_values - center[:, None]), 0.0)  # (B, T), mean 0
    near = scaled.abs().amax(1) < 1  # (B,)
    log_mean = torch.log1p(masked_mean(torch.expm1(torch.where(near[:, None], scaled, 0.0)), mask))
    far = torch.where(mask, p[:, None] * log_values, float("-inf"))
    far = torch.where((near | ~mask.any(1))[:, None], 0.0, far)  # unused rows: any finite value
    far_mean = far.logsumexp(1) - mask.sum(1).clamp(min=1).to(far.dtype).log()
    excess = torch.where(power == 0, 0.0, log_mean / p)
    return torch.where(near | (power == 0), center + excess, far_mean / p)


def kl_estimate(logp: Tensor, ref_logp: Tensor, mask: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """Return an estimate of the KL divergence to the reference policy for each token (B, T); 0 where masked.

    With `d = ref_logp - logp`, for tokens that the policy sampled:

    - `k1` = `-d`: unbiased as a number; its gradient is 0 on average.
    - `k2` = `d^2 / 2`: biased as a number; its gradient is that of KL(policy, reference).
    - `k3` = `exp(d) - d - 1`: unbiased as a number; its gradient is that of KL(reference, policy).

    Source: Schulman 2020 (Approximating KL divergence); k3 in DeepSeekMath (GRPO), eq. 4.

    Args:
        logp: (B, T) log-probabilities under the policy.
        ref_logp: (B, T) log-probabilities under the reference.
        mask: (B, T) bool.
        estimator: `k1`, `k2` or `k3`.
    """
    d = log_ratio(ref_logp, logp, mask)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    return torch.expm1(d) - d


def discounted_sum(values: Tensor, factor: float, block: int = 64) -> Tensor:
    """Return `sum_{k >= t} factor^(k - t) values_k` (B, T).

    Args:
        values: (B, T).
        factor: in [0, 1].
        block: positions that are summed at once, in memory of B x block^2.
    """
    steps = torch.arange(block, device=values.device, dtype=values.dtype)
    powers = factor ** (steps - steps[:, None]).clamp(min=0) * (steps >= steps[:, None])  # (t, k)
    after = torch.zeros_like(values[:, :1])
    sums = []
    for part in reversed(values.split(block, 1)):
        n = part.shape[1]
        sums.append((part[:, None] * powers[:n, :n]).sum(2) + after * factor ** (n - steps[:n]))
        after = sums[-1][:, :1]
    return torch.cat(sums[::-1], 1)


def masked_sum(values: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Return `sum_i sum_t weight * values` over the unmasked (B, T) positions; masked values have no effect."""
    return (torch.where(mask, values, 0.0) * weight).sum()


def row_sum(values: Tensor, x: LossInputs) -> Tensor:
    """Return `sum_i row_weight values` over the rows (B,) that have a token in the loss."""
    return (torch.where(x.mask.any(1), values, 0.0) * x.row_weight).sum()


def count_by_sequence(mask: Tensor, places: Tensor) -> Tensor:
    """Return the tokens in the loss of each sequence of each row (B, T), 0 beyond the last sequence.

    Args:
        mask: (B, T) numbers, 1 for the tokens in the loss.
        places: (B, T) int64 which sequence of its row a token belongs to.
    """
    return torch.zeros_like(mask).scatter_add(1, places, mask)


def aggregation_weights(
    mask: Tensor,
    group_size: int,
    aggregation: Aggregation,
    sequences: float,
    tokens: float,
    max_tokens: int,
    places: Tensor | None = None,
) -> Tensor:
    """Return each token's share of the loss (B, T) float64; 0 where masked.

    Args:
        mask: (B, T) bool of whole groups, row = p * group_size + g.
        group_size: completions of each prompt.
        aggregation: `sequence_mean` 1/(B n_i); `token_mean` 1/N; `group_token_mean` 1/(P sum_g n);
            `constant` 1/(B T_max); `token_sum` 1/B.
        sequences: B over all ranks and micro-batches of this optimizer step.
        tokens: N over all ranks and micro-batches of this optimizer step.
        max_tokens: T_max, the configured longest completion.
        places: (B, T) int64 which sequence of its row a token belongs to, if each sequence counts as one; B is then the
            number of sequences, and n_i the tokens of the token's own. None = each row is one.
    """
    m = mask.double()
    if aggregation == "token_mean":
        return m / max(tokens, 1.0)
    if aggregation == "constant":
        return m / (sequences * max_tokens)
    if aggregation == "token_sum":
        return m / sequences
    lengths = m.sum(1, keepdim=True)  # (B, 1)
    if places is not None:
        lengths = count_by_sequence(m, places).gather(1, places)  # (B, T)
    if aggregation == "sequence_mean":
        return m / (sequences * lengths.clamp(min=1))
    per_group = lengths.view(-1, group_size).sum(1).repeat_interleave(group_size)[:, None]  # (B, 1)
    return m * group_size / (sequences * per_group.clamp(min=1))


def resolve_correction(requested: ImportanceCorrection | None, exact: bool) -> ImportanceCorrection:
    """Return the requested correction; by default `none` if the engine's log-probabilities equal the trainer's."""
    return requested or ("none" if exact else "token_truncate")


def loglinear_old(logp: Tensor, rollout_logp: Tensor, age: Tensor, updates: int) -> Tensor:
    """Return an approximation (B, T) of the old log-probabilities that needs no forward pass.

    It is `b + alpha (logp - b)` with `b = rollout_logp` and `alpha = (v_old - v_b) / (v_logp - v_b)`. Source: AReaL's
    `prox_logp_method: loglinear` (areal/trainer/ppo/actor.py, `compute_prox_logp_approximations`). v counts optimizer
    steps here. AReaL counts syncs with the engine, and takes v_old = v_logp - 1 in all steps of an iteration.

    Args:
        logp: (B, T) log-probabilities under the current policy, without a gradient.
        rollout_logp: (B, T) log-probabilities that the tokens were sampled with.
        age: (B, T) v_old - v_b, optimizer steps from the weights that sampled each token to the old ones.
        updates: v_logp - v_old, optimizer steps from the old weights to the current ones; at least 1.
    """
    return torch.lerp(rollout_logp, logp, (age / (age + updates)).to(logp.dtype))


def lower_bound(correction: str, cap: float | None, floor: float | None) -> float | None:
    """Return the lower bound of the ratios: `floor`, or for `..._reject` without one `1 / cap`; None = none."""
    if floor is None and cap is not None and correction.endswith("reject"):
        return 1 / cap
    return floor


def bounded_weights(log_ratios: Tensor, kind: str, cap: float | None, floor: float | None) -> Tensor:
    """Return the weights for log-ratios, in their shape.

    Args:
        log_ratios: (B, T) of tokens, or (B,) of sequences.
        kind: `truncate` clips the ratio to its bounds; `mis` gives 0 outside them; `reject` gives 0 outside, else 1.
        cap, floor: see `Importance`.
    """
    lower = lower_bound(kind, cap, floor)
    low = math.log(lower) if lower else -math.inf
    high = math.inf if cap is None else math.log(cap)
    if kind == "truncate":
        return log_ratios.clamp(low, high).exp()
    within = (log_ratios >= low) & (log_ratios <= high)
    if kind == "mis":
        return torch.where(within, log_ratios.exp(), 0.0)
    return within.to(log_ratios.dtype)


def importance_weights(
    old_logp: Tensor,
    rollout_logp: Tensor,
    mask: Tensor,
    correction: ImportanceCorrection,
    cap: float | None = None,
    floor: float | None = None,
    veto: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return weights that correct for an engine whose log-probabilities differ from the trainer's.

    Args:
        old_logp: (B, T) the trainer's log-probabilities of the sampled tokens.
        rollout_logp: (B, T) the engine's log-probabilities of them, each under the weights that sampled it.
        mask: (B, T) bool.
        correction, cap, floor, veto: see `Importance`.

    Returns:
        Weights of tokens (B, T), and of rows (B,) for losses on whole sequences. `none`: 1 for both. `token_*`: each
        token's bounded ratio; for the row the bounded geometric mean of its ratios, truncated, but with `token_mis` 0
        outside the bounds. `sequence_*`, `geometric_*`: the bounded product or geometric mean of the row's ratios, the
        same for the row and each of its tokens.
    """
    d = log_ratio(old_logp, rollout_logp, mask)
    level, _, kind = correction.partition("_")
    mean = masked_mean(d, mask)  # (B,)
    if level == "none":
        tokens = torch.ones_like(d)
        rows = torch.ones_like(mean)
    elif level == "token":
        tokens = bounded_weights(d, kind, cap, floor)
        rows = bounded_weights(mean, "mis" if kind == "mis" else "truncate", cap, floor)
    else:
        bound = 0.5 * math.log(torch.finfo(d.dtype).max)
        # sequences: (B,)
        if level == "geometric":
            sequences = mean
        else:
            sequences = d.sum(1).clamp(-bound, bound)
        rows = bounded_weights(sequences, kind, cap, floor)
        tokens = rows[:, None].expand_as(d)
    if veto is None:
        return tokens, rows
    kept = ~((d < math.log(veto)) & mask).any(1)  # (B,)
    return tokens * kept[:, None], rows * kept
