"""The metrics of training over all ranks: of advantages, of an optimizer step, and of the ages of tokens."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import all_sum, gather_rows
from lit_rlvr.objectives import Stats
from lit_rlvr.types import Rollout


def advantage_metrics(advantages: Tensor, sums: Stats, mask: Tensor) -> dict[str, float]:
    """Return the share of groups without a signal, and the terms' mean costs.

    Collective: call it on every rank.

    Args:
        advantages: (P, G) of this rank.
        sums: costs in rewards and advantages, by metric, over this rank's tokens.
        mask: (B, T) bool, the tokens in the loss.
    """
    without_signal = float((advantages == 0).all(1).sum())
    counts = [without_signal, len(advantages), float(mask.sum()), *map(float, sums.values())]
    without_signal, num_prompts, tokens, *totals = all_sum(torch.tensor(counts, dtype=torch.float64)).tolist()
    means = {}
    for name, total in zip(sums, totals, strict=True):
        if name:
            means[name] = total / max(tokens, 1)
    return means | {"no_signal": without_signal / num_prompts}


def step_metrics(sums: Stats) -> dict[str, float]:
    """Turn sums over this rank's tokens into means over the tokens run on all ranks, by metric name.

    Collective: call it on every rank.
    """
    if not sums:
        return {"train/loss": 0.0}
    names = sorted(sums)
    total = dict(zip(names, all_sum(torch.stack([sums[n].double() for n in names])).tolist(), strict=True))
    loss = total.pop("loss")
    tokens = max(total.pop("tokens"), 1.0)
    observed = total.pop("observed_tokens", 0.0)
    if "observation_nll" in total:
        total["observation_nll"] *= tokens / max(observed, 1.0)
    sizes = {}
    for name, weight in (("effective_sample_size", "engine_ratio"), ("staleness/ess", "weight")):
        if weight in total:
            sizes[f"train/{name}"] = total.pop(weight) ** 2 / max(total.pop(f"{weight}_squared"), 1e-12) / tokens
    return {f"train/{name}": value / tokens for name, value in total.items()} | sizes | {"train/loss": loss}


def staleness_metrics(
    rollout: Rollout, age: Tensor, live: list[int], minibatches: list[list[int]], log_zero: bool = True
) -> dict[str, float]:
    """Return the ages of the tokens that training runs, over all ranks; {} if it runs none.

    These are the mean, the largest, and the share of tokens that follow older keys and values.

    Collective: call it on every rank.

    Args:
        rollout: the rollout of this rank.
        age: (B, T) optimizer steps between the weights that sampled each token and those of the first update.
        live: rows that can have a gradient.
        minibatches: positions of this rank's groups in each optimizer step; ages are logged in iterations, that is
            divided by the number of steps.
        log_zero: False = return {} also if no token is old.
    """
    groups = set(chain.from_iterable(minibatches))
    rows = []
    for i in live:
        if i // rollout.group_size in groups:
            rows.append(i)
    mask = rollout.mask[rows]
    ages = age[rows][mask].double() / len(minibatches)
    oldest = float(ages.max()) if len(ages) else 0.0
    if rollout.stale_cache is None:
        stale = 0.0
    else:
        stale = float(rollout.stale_cache[rows][mask].sum())
    sums_of_rank = torch.tensor([[float(ages.sum()), float(len(ages)), stale, oldest]], dtype=torch.float64)
    sums, tokens, stales, largest = gather_rows(sums_of_rank).unbind(1)  # (ranks,) each
    if not tokens.sum() or not (log_zero or largest.max() > 0):
        return {}
    metrics = {"mean": sums.sum() / tokens.sum(), "max": largest.max()}
    if rollout.stale_cache is not None:
        metrics["stale_cache"] = stales.sum() / tokens.sum()
    return {f"train/staleness/{name}": float(value) for name, value in metrics.items()}
