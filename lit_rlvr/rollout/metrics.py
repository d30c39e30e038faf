"""The metrics of a rollout, over all ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import all_sum, gather_objects
from lit_rlvr.speech.thought_tokens import TokenTexts, count_thought_tokens
from lit_rlvr.speech.thoughts import MARK, ends_in_thoughts
from lit_rlvr.types import STATUSES, Completion, Rollout


def rollout_metrics(
    rollout: Rollout, tokenizer: Any, seconds: float, reference_completions: Sequence[list[Completion]] = ()
) -> dict[str, float]:
    """Compute the metrics of a rollout, over all ranks.

    `rollout/entropy` is the mean of -log p over the sampled tokens, an unbiased estimate of the entropy of the sampling
    distribution, in nats. Unlike `train/entropy` it covers all completions, even if an algorithm trains on only some.
    Rewards are means over the completions that have one, and accuracies count a failed check as wrong, but not what no
    reward calls right or wrong; without such completions these metrics are NaN.

    `rollout/lowest_reward` and `rollout/highest_reward` are those of single completions; `rollout/prompts_at_lowest`
    and `rollout/prompts_at_highest` are the shares of prompts of which every completion has this reward.

    `rollout/accuracy_error` is the standard error of the accuracy, by the spread of the prompts' accuracies, because
    the completions of a prompt are correlated.

    `rollout/thought_tokens`, the sampled tokens of thoughts, `rollout/answer_tokens`, the others, and the shares
    `rollout/unclosed_thoughts` and `rollout/closed_thoughts` are means over all completions, where any of them has
    thoughts.

    Collective: call it on every rank.

    Args:
        rollout: this rank's groups.
        tokenizer: the model's.
        seconds: how long generation took; 0 = these were not generated now, so they have no rate.
        reference_completions: further completions generated for it, which count in `rollout/samples` and
            `rollout/tokens` too.
    """
    generated = [*rollout.completions, *reference_completions]
    total = sum_over_ranks(completion_sums(rollout, tokenizer) | generated_sums(generated))
    size = total["size"]
    tokens = total["rollout/length"]
    metrics = {"rollout/length": tokens / size, "rollout/truncated": total["rollout/truncated"] / size}
    for status in STATUSES:
        if status != "ok":
            metrics[f"reward/status/{status}"] = total[f"reward/status/{status}"] / size
    if total["thinking"]:
        for name in ("thought_tokens", "unclosed_thoughts", "closed_thoughts"):
            metrics[f"rollout/{name}"] = total[f"rollout/{name}"] / size
        metrics["rollout/answer_tokens"] = (tokens - total["rollout/thought_tokens"]) / size
    metrics["rollout/reward"] = _mean(total["rewards"], total["rewarded"])
    metrics["rollout/accuracy"] = _mean(total["rollout/correct_count"], total["counted"])
    for name in rollout.parts:
        given = total[f"given/{name}"]
        metrics[f"reward/{name}"] = _mean(total[f"sum/{name}"], given)
        if name in rollout.unreadable:
            metrics[f"reward/{name}/parse_fail"] = _mean(total[f"sum/{name}/parse_fail"], given)
    prompts = total["rollout/judged_prompts"]
    if prompts > 1:
        deviations = max(total["squares"] - total["shares"] ** 2 / prompts, 0.0)
        metrics["rollout/accuracy_error"] = math.sqrt(deviations / (prompts - 1) / prompts)
    for name in ("correct_count", "unsolved_prompts", "judged_prompts", "samples", "tokens"):
        metrics[f"rollout/{name}"] = total[f"rollout/{name}"]
    metrics["rollout/entropy"] = total["nats"] / max(tokens, 1.0)
    if seconds:
        metrics["rollout/tokens_per_second"] = tokens / seconds
    return metrics | reward_spread(rollout)


def completion_sums(rollout: Rollout, tokenizer: Any) -> dict[str, Tensor]:
    """Return numbers and sums over this rank's completions, from which `rollout_metrics` makes means."""
    counted = rollout.in_accuracy  # (P, G)
    rewarded = rollout.has_reward  # (P, G)
    shares = rollout.known_correct.sum(1).double() / counted.sum(1).clamp(min=1)  # (P,)
    unsolved = (rollout.correct.sum(1) == 0) & counted.any(1)  # (P,)
    sums = {
        "size": torch.tensor(float(rollout.rewards.numel())),
        "rollout/length": rollout.lengths.sum(),
        "rollout/truncated": rollout.truncated.sum(),
        "rollout/correct_count": rollout.known_correct.sum(),
        "rollout/unsolved_prompts": unsolved.sum(),
        "rollout/judged_prompts": counted.any(1).sum(),
        "nats": -rollout.rollout_logprobs.sum(),
        "counted": counted.sum(),
        "shares": shares.sum(),
        "squares": (shares**2).sum(),
        "rewarded": rewarded.sum(),
        "rewards": (rollout.rewards * rewarded).sum(),
    }
    statuses = Counter(chain.from_iterable(rollout.statuses))
    for status in STATUSES:
        sums[f"reward/status/{status}"] = torch.tensor(float(statuses[status]))
    for name, part in rollout.parts.items():
        sums[f"sum/{name}"] = part.nansum()
        sums[f"given/{name}"] = (~part.isnan()).sum()
    for name, part in rollout.unreadable.items():
        sums[f"sum/{name}/parse_fail"] = part.sum()
    return sums | thought_counts(rollout, tokenizer)


def generated_sums(groups: Sequence[list[Completion]]) -> dict[str, Tensor]:
    """Return the number of generated completions, and of their tokens."""
    lengths = []
    for group in groups:
        for completion in group:
            lengths.append(completion.length)
    return {
        "rollout/samples": torch.tensor(float(len(lengths))),
        "rollout/tokens": torch.tensor(float(sum(lengths)), dtype=torch.float64),
    }


def sum_over_ranks(sums: dict[str, Tensor]) -> dict[str, float]:
    """Return the sums of all ranks, which have the same names in the same order.

    Collective: call it on every rank.
    """
    values = all_sum(torch.stack([value.double() for value in sums.values()]))
    return dict(zip(sums, values.tolist(), strict=True))


def _mean(total: float, count: float) -> float:
    """Return a mean, NaN of nothing."""
    if count:
        return total / count
    return math.nan


def reward_spread(rollout: Rollout) -> dict[str, float]:
    """Return the lowest and the highest reward over all ranks, and the shares of prompts all at one of them.

    Collective: call it on every rank.

    Args:
        rollout: this rank's groups.
    """
    ranges = []
    for rewards, known in zip(rollout.rewards, rollout.has_reward, strict=True):
        if known.any():
            ranges.append((float(rewards[known].min()), float(rewards[known].max())))
    everywhere = list(chain.from_iterable(gather_objects(ranges)))
    lowest = highest = at_lowest = at_highest = math.nan
    if everywhere:
        lowest = min(low for low, _ in everywhere)
        highest = max(high for _, high in everywhere)
        at_lowest = fmean(high == lowest for _, high in everywhere)
        at_highest = fmean(low == highest for low, _ in everywhere)
    return {
        "rollout/lowest_reward": lowest,
        "rollout/highest_reward": highest,
        "rollout/prompts_at_lowest": at_lowest,
        "rollout/prompts_at_highest": at_highest,
    }


def set_metrics(rollout: Rollout, names: Sequence[str]) -> dict[str, float]:
    """Return the metrics of each data set after training on a rollout, over all ranks.

    They are NaN for a set of which the rollout has no prompt. Weighted by prompts, they add up to those of the rollout
    if every completion is judged.

    Collective: call it on every rank.

    Args:
        rollout: this rank's groups, with their advantages.
        names: of the sets, the same on all ranks.
    """
    is_of = torch.tensor([[p.sample.dataset == name for p in rollout.prompts] for name in names])  # (sets, P)
    assert rollout.advantages is not None, "training has estimated them"
    counted = rollout.in_accuracy  # (P, G)
    rewarded = rollout.has_reward  # (P, G)
    columns = (  # (P,) each
        torch.ones(len(rollout.prompts)),
        (rollout.advantages == 0).all(1),
        (rollout.rewards * rewarded).sum(1),
        rewarded.sum(1),
        rollout.known_correct.sum(1),
        counted.sum(1),
    )
    table = torch.stack([column.double() for column in columns], 1)  # (P, 6)
    sums = all_sum(is_of.double() @ table)  # (sets, 6)
    prompts, without_signal, rewards, with_reward, right, judged = sums.unbind(1)
    metrics = {
        "prompts": prompts / prompts.sum(),
        "no_signal": without_signal / prompts,
        "reward": rewards / with_reward,
        "accuracy": right / judged,
    }
    named = {}
    for k, name in enumerate(names):
        for key, value in metrics.items():
            named[f"train/{name}/{key}"] = float(value[k])
    return named


def thought_counts(rollout: Rollout, tokenizer: Any) -> dict[str, Tensor]:
    """Return the tokens of all thoughts, and numbers of completions.

    The numbers are of completions that have thoughts, whose thoughts never end, and whose thoughts the engine closed.
    """
    texts = TokenTexts(tokenizer)
    tokens = thinking = unclosed = closed = 0
    for prompt, group in zip(rollout.prompts, rollout.completions, strict=True):
        for completion in group:
            turns = completion.turns or (completion,)
            if any(MARK.search(prompt.prefill + turn.text) for turn in turns):  # else no token need be decoded
                thoughts = count_thought_tokens(texts, completion.token_ids, completion.from_model, prompt.prefill)
                tokens += thoughts.tokens
                if thoughts.tokens:
                    thinking += 1
                if thoughts.are_closed:
                    closed += 1
            if ends_in_thoughts(prompt.prefill + completion.text):
                unclosed += 1
    counts = {
        "rollout/thought_tokens": tokens,
        "rollout/unclosed_thoughts": unclosed,
        "rollout/closed_thoughts": closed,
        "thinking": thinking,
    }
    return {name: torch.tensor(float(count)) for name, count in counts.items()}
