"""The metrics of a rollout, over all ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
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
    size = float(rollout.rewards.numel())
    generated = [completion for group in [*rollout.completions, *reference_completions] for completion in group]
    counted = rollout.in_accuracy  # (P, G)
    rewarded = rollout.has_reward  # (P, G)
    shares = rollout.known_correct.sum(1).double() / counted.sum(1).clamp(min=1)  # (P,)
    unsolved = (rollout.correct.sum(1) == 0) & counted.any(1)  # (P,)
    statuses = Counter(status for group in rollout.statuses for status in group)
    sums = {
        "rollout/length": rollout.lengths.sum(),
        "rollout/truncated": rollout.truncated.sum(),
        **{f"reward/status/{s}": torch.tensor(float(statuses[s])) for s in STATUSES if s != "ok"},
        **thought_counts(rollout, tokenizer),
        "size": torch.tensor(size),
        "rollout/correct_count": rollout.known_correct.sum(),
        "rollout/unsolved_prompts": unsolved.sum(),
        "rollout/samples": torch.tensor(float(len(generated))),
        "rollout/tokens": torch.tensor(float(sum(c.length for c in generated)), dtype=torch.float64),
        "nats": -rollout.rollout_logprobs.sum(),
        "counted": counted.sum(),
        "rollout/judged_prompts": counted.any(1).sum(),
        "shares": shares.sum(),
        "squares": (shares**2).sum(),
        "rewarded": rewarded.sum(),
        "rewards": (rollout.rewards * rewarded).sum(),
        **{f"sum/{name}": part.nansum() for name, part in rollout.parts.items()},
        **{f"sum/{name}/parse_fail": part.sum() for name, part in rollout.unreadable.items()},
        **{f"given/{name}": (~part.isnan()).sum() for name, part in rollout.parts.items()},
    }
    total = dict(zip(sums, all_sum(torch.stack([v.double() for v in sums.values()])).tolist(), strict=True))
    count = total.pop("size")
    nats = total.pop("nats")
    tokens = total["rollout/length"]
    names = ("correct_count", "unsolved_prompts", "judged_prompts", "samples", "tokens")
    counts = {f"rollout/{name}": total.pop(f"rollout/{name}") for name in names}
    means = {"rollout/reward": (total.pop("rewards"), total.pop("rewarded"))}
    means["rollout/accuracy"] = (counts["rollout/correct_count"], total.pop("counted"))
    for name in rollout.parts:
        given = total.pop(f"given/{name}")
        keys = (name, f"{name}/parse_fail")
        means |= {f"reward/{key}": (total.pop(f"sum/{key}"), given) for key in keys if f"sum/{key}" in total}
    known = {name: value / number if number else math.nan for name, (value, number) in means.items()}
    if total.pop("thinking"):
        total["rollout/answer_tokens"] = tokens - total["rollout/thought_tokens"]
    else:
        for name in ("thought_tokens", "unclosed_thoughts", "closed_thoughts"):
            del total[f"rollout/{name}"]
    prompts = counts["rollout/judged_prompts"]
    shares_sum = total.pop("shares")
    squares = total.pop("squares")
    if prompts > 1:
        deviations = max(squares - shares_sum**2 / prompts, 0.0)
        known["rollout/accuracy_error"] = math.sqrt(deviations / (prompts - 1) / prompts)
    rates = {"rollout/entropy": nats / max(tokens, 1.0)}
    if seconds:
        rates["rollout/tokens_per_second"] = tokens / seconds
    rates |= reward_spread(rollout)
    return {name: value / count for name, value in total.items()} | known | counts | rates


def reward_spread(rollout: Rollout) -> dict[str, float]:
    """Return the lowest and the highest reward over all ranks, and the shares of prompts all at one of them.

    Collective: call it on every rank.

    Args:
        rollout: this rank's groups.
    """
    groups = [values[known] for values, known in zip(rollout.rewards, rollout.has_reward, strict=True) if known.any()]
    ranges = [(float(values.min()), float(values.max())) for values in groups]
    everywhere = [pair for pairs in gather_objects(ranges) for pair in pairs]
    names = ("lowest_reward", "highest_reward", "prompts_at_lowest", "prompts_at_highest")
    if not everywhere:
        return {f"rollout/{name}": math.nan for name in names}
    lowest = min(low for low, _ in everywhere)
    highest = max(high for _, high in everywhere)
    at_lowest = fmean(high == lowest for _, high in everywhere)
    at_highest = fmean(low == highest for low, _ in everywhere)
    return {f"rollout/{name}": v for name, v in zip(names, (lowest, highest, at_lowest, at_highest), strict=True)}


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
    sums = all_sum(is_of.double() @ torch.stack([column.double() for column in columns], 1))  # (sets, 6)
    prompts, dead, rewards, with_reward, right, judged = sums.unbind(1)
    metrics = {
        "prompts": prompts / prompts.sum(),
        "no_signal": dead / prompts,
        "reward": rewards / with_reward,
        "accuracy": right / judged,
    }
    return {f"train/{name}/{key}": float(value[k]) for k, name in enumerate(names) for key, value in metrics.items()}


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
                thinking += thoughts.tokens > 0
                closed += thoughts.are_closed
            unclosed += ends_in_thoughts(prompt.prefill + completion.text)
    counts = {
        "rollout/thought_tokens": tokens,
        "rollout/unclosed_thoughts": unclosed,
        "rollout/closed_thoughts": closed,
        "thinking": thinking,
    }
    return {name: torch.tensor(float(count)) for name, count in counts.items()}
