"""Assembles completions and scores into a `Rollout`, and computes its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlvr.distributed.collectives import all_sum, gather_objects, rank
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.types import Completion, Prompt, Rollout, Sampling, pad_completions


def assemble(
    prompts: list[Prompt],
    completions: list[list[Completion]],
    scores: Scores,
    sampling: Sampling,
    mask_truncated: bool = False,
    exact: bool = False,
) -> Rollout:
    """Combine completions and scores into a `Rollout`.

    A completion whose check failed is masked out of the loss, and gets the mean reward and correctness of the rest of
    its group, so that it changes neither mean. With `mask_truncated`, truncated completions are masked out too, but
    keep their rewards.

    Args:
        completions: P lists of G. scores: (P, G).
        exact: whether the engine's log-probabilities equal the trainer's.
    """
    token_ids, mask, logprobs = pad_completions(completions)
    failed = scores.failed  # (P, G)
    lost = failed
    if mask_truncated:
        lost = failed | torch.tensor([[c.truncated for c in group] for group in completions])
    return Rollout(
        prompts=prompts,
        completions=completions,
        token_ids=token_ids,
        mask=mask & ~lost.flatten()[:, None],
        engine_logprobs=logprobs,
        rewards=impute(scores.rewards, failed),
        correct=impute(scores.correct, failed),
        judged=~failed,
        parts=scores.parts,
        statuses=scores.statuses,
        sampling=sampling,
        exact=exact,
    )


def impute(values: Tensor, failed: Tensor) -> Tensor:
    """`values` (P, G) with failed ones replaced by the mean of the rest of their group (0 if all failed)."""
    judged = (~failed).to(values.dtype)
    mean = (values * judged).sum(1, keepdim=True) / judged.sum(1, keepdim=True).clamp(min=1)
    return torch.where(failed, mean, values)


def count_repeats(prompts: list[Prompt], before: list[Prompt]) -> list[int]:
    """How often each of this rank's prompts occurred earlier in the iteration: in earlier rounds, on lower ranks, or
    earlier on this rank. Collective: call it on every rank.

    Args:
        before: this rank's prompts of earlier rounds.
    """
    parts = gather_objects(([p.sample.id for p in before], [p.sample.id for p in prompts]))
    seen = Counter(name for earlier, _ in parts for name in earlier)
    counts: list[list[int]] = []
    for _, names in parts:
        counts.append([])
        for name in names:
            counts[-1].append(seen[name])
            seen[name] += 1
    return counts[rank()]


def rollout_metrics(rollout: Rollout, seconds: float, beside: Sequence[list[Completion]] = ()) -> dict[str, float]:
    """Metrics of a rollout, over all ranks. Collective: call it on every rank.

    `rollout/entropy` is the mean of -log p over the sampled tokens, an unbiased estimate of the entropy of the sampling
    distribution, in nats. Unlike `train/entropy` it covers all completions, even if an algorithm trains on only some.

    Args:
        seconds: how long generation took.
        beside: further completions generated for it, which count in `rollout/samples` and `rollout/tokens` too.
    """
    size = float(rollout.rewards.numel())
    generated = [completion for group in [*rollout.completions, *beside] for completion in group]
    solved = rollout.correct.sum(1)  # (P,)
    statuses = Counter(status for group in rollout.statuses for status in group)
    sums = {
        "rollout/reward": rollout.rewards.sum(),
        "rollout/accuracy": (rollout.correct * rollout.judged).sum(),
        "rollout/length": rollout.lengths.sum(),
        "rollout/truncated": rollout.truncated.sum(),
        **{f"reward/{name}": part.sum() for name, part in rollout.parts.items()},
        **{f"reward/status/{s}": torch.tensor(float(statuses[s])) for s in ("parse_fail", "timeout", "error")},
        "size": torch.tensor(size),
        "rollout/correct_count": (rollout.correct * rollout.judged).sum(),
        "rollout/unsolved_prompts": (solved == 0).float().sum(),
        "rollout/samples": torch.tensor(float(len(generated))),
        "rollout/tokens": torch.tensor(float(sum(c.length for c in generated)), dtype=torch.float64),
        "nats": -rollout.engine_logprobs.sum(),
    }
    total = dict(zip(sums, all_sum(torch.stack([v.double() for v in sums.values()])).tolist(), strict=True))
    count, nats, tokens = total.pop("size"), total.pop("nats"), total["rollout/length"]
    counted = ("correct_count", "unsolved_prompts", "samples", "tokens")
    counts = {f"rollout/{name}": total.pop(f"rollout/{name}") for name in counted}
    rates = {"rollout/entropy": nats / max(tokens, 1.0), "rollout/tokens_per_second": tokens / max(seconds, 1e-9)}
    return {name: value / count for name, value in total.items()} | counts | rates


def live_groups(rollout: Rollout) -> list[int]:
    """Indices of prompts whose judged completions are neither all correct nor all wrong."""
    right = ((rollout.correct == 1) & rollout.judged).any(1)
    wrong = ((rollout.correct == 0) & rollout.judged).any(1)
    return [int(p) for p in (right & wrong).nonzero().flatten()]


def all_live_groups(rollout: Rollout) -> list[list[int]]:
    """The live groups of each rank, in rank order. Collective: call it on every rank."""
    return gather_objects(live_groups(rollout))


def number_groups(chosen: list[list[int]], share: int, limit: int) -> dict[int, int]:
    """Number every rank's chosen groups in the order of the prompt stream, and keep the first `limit`.

    Args:
        chosen: each rank's local indices of groups.
        share: prompts per rank in one sampling round.
        limit: how many groups to keep, over all ranks.

    Returns:
        This rank's kept groups -> their numbers, which do not depend on the number of ranks.
    """
    places = sorted((p // share, r, p % share) for r, part in enumerate(chosen) for p in part)[:limit]
    return {turn * share + p: number for number, (turn, r, p) in enumerate(places) if r == rank()}


def join(first: Rollout, second: Rollout) -> Rollout:
    """Concatenate two rollouts with the same sampling and group size."""
    width = max(first.token_ids.shape[1], second.token_ids.shape[1])

    def stack(name: str) -> Tensor:
        parts = [getattr(rollout, name) for rollout in (first, second)]  # (B, T) each
        return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])

    return replace(
        first,
        prompts=first.prompts + second.prompts,
        completions=first.completions + second.completions,
        token_ids=stack("token_ids"),
        mask=stack("mask"),
        engine_logprobs=stack("engine_logprobs"),
        rewards=torch.cat([first.rewards, second.rewards]),
        correct=torch.cat([first.correct, second.correct]),
        judged=torch.cat([first.judged, second.judged]),
        parts={name: torch.cat([part, second.parts[name]]) for name, part in first.parts.items()},
        statuses=first.statuses + second.statuses,
        reference_rewards=None
        if first.reference_rewards is None or second.reference_rewards is None
        else torch.cat([first.reference_rewards, second.reference_rewards]),
    )
