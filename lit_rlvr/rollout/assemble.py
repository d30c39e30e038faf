"""Assembles completions and scores into a `Rollout`, balances it over the ranks, and computes its metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlvr.advantages.base import degenerate, impute
from lit_rlvr.distributed.collectives import all_sum, gather_objects, rank, world_size
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.speech.thoughts import ends_in_thoughts, thoughts_in
from lit_rlvr.types import STATUSES, Completion, Pixels, Prompt, Rollout, Sampling, Status, pad_completions


def assemble(
    prompts: list[Prompt],
    completions: list[list[Completion]],
    scores: Scores,
    sampling: Sampling,
    mask_truncated: bool = False,
    exact: bool = False,
    version: int | None = None,
    taught: bool = False,
) -> Rollout:
    """Combine completions and scores into a `Rollout`.

    A completion without a reward, because its check failed or no reward judges it, gets the mean reward and correctness
    of the rest of its group, so that it changes neither mean, and is masked out of the loss; unless it only lacks a
    judge and a teacher scores its tokens. With `mask_truncated`, truncated completions are masked out too, but keep
    their rewards.

    Args:
        completions: P lists of G. scores: (P, G).
        exact: whether the engine's log-probabilities equal the trainer's.
        version: of the weights that sampled the completions; None = there is no training.
        taught: whether a teacher scores them.
    """
    token_ids, sampled, logprobs = pad_completions(completions)
    return Rollout(
        prompts=prompts,
        completions=completions,
        token_ids=token_ids,
        mask=tokens_in_loss(sampled, completions, scores.statuses, mask_truncated, taught),
        rollout_logprobs=logprobs,
        rewards=impute(scores.rewards, scores.masked),
        correct=impute(scores.correct, ~scores.judged),
        judged=scores.judged,
        parts=scores.parts,
        statuses=scores.statuses,
        sampling=sampling,
        exact=exact,
        weights=scores.weights,
        details=scores.details,
        versions=None if version is None else torch.full(token_ids.shape, version),
    )


def tokens_in_loss(
    sampled: Tensor, completions: list[list[Completion]], statuses: list[list[Status]], mask_truncated: bool,
    taught: bool,
) -> Tensor:  # fmt: skip
    """Return the tokens in the loss (B, T): the sampled ones, without completions that `assemble` masks out.

    Args:
        sampled: (B, T) bool. completions, statuses: P lists of G. mask_truncated, taught: as `assemble` takes them.
    """
    without_reward = ("error",) if taught else ("error", "unjudged")
    masked_out = [
        status in without_reward or (mask_truncated and completion.truncated)
        for group, statuses_of_group in zip(completions, statuses, strict=True)
        for completion, status in zip(group, statuses_of_group, strict=True)
    ]
    return sampled & ~torch.tensor(masked_out, dtype=torch.bool)[:, None]


def rollout_metrics(
    rollout: Rollout, tokenizer: Any, seconds: float, reference_completions: Sequence[list[Completion]] = ()
) -> dict[str, float]:
    """Compute the metrics of a rollout, over all ranks. Collective: call it on every rank.

    `rollout/entropy` is the mean of -log p over the sampled tokens, an unbiased estimate of the entropy of the sampling
    distribution, in nats. Unlike `train/entropy` it covers all completions, even if an algorithm trains on only some.
    Rewards are means over the completions that have one, and accuracies count a failed check as wrong, but not what no
    reward calls right or wrong; without such completions these metrics are NaN.

    `rollout/accuracy_error` is the standard error of the accuracy, by the spread of the prompts' accuracies, because
    the completions of a prompt are correlated.

    `rollout/thought_tokens`, the tokens of thoughts as the tokenizer writes their texts, `rollout/answer_tokens`, the
    others, and the share `rollout/unclosed_thoughts` are means over all completions, where any of them has thoughts.

    Args:
        tokenizer: the model's.
        seconds: how long generation took; 0 = these were not generated now, so they have no rate.
        reference_completions: further completions generated for it, which count in `rollout/samples` and
            `rollout/tokens` too.
    """
    size = float(rollout.rewards.numel())
    generated = [completion for group in [*rollout.completions, *reference_completions] for completion in group]
    counted = rollout.counted  # (P, G)
    rewarded = rollout.rewarded  # (P, G)
    shares = (rollout.correct * rollout.judged).sum(1).double() / counted.sum(1).clamp(min=1)  # (P,)
    unsolved = (rollout.correct.sum(1) == 0) & counted.any(1)  # (P,)
    statuses = Counter(status for group in rollout.statuses for status in group)
    sums = {
        "rollout/length": rollout.lengths.sum(),
        "rollout/truncated": rollout.truncated.sum(),
        **{f"reward/{name}/parse_fail": part.sum() for name, part in rollout.unreadable.items()},
        **{f"reward/status/{s}": torch.tensor(float(statuses[s])) for s in STATUSES if s != "ok"},
        **thought_counts(rollout, tokenizer),
        "size": torch.tensor(size),
        "rollout/correct_count": (rollout.correct * rollout.judged).sum(),
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
        **{f"given/{name}": (~part.isnan()).sum() for name, part in rollout.parts.items()},
    }
    total = dict(zip(sums, all_sum(torch.stack([v.double() for v in sums.values()])).tolist(), strict=True))
    count, nats, tokens = total.pop("size"), total.pop("nats"), total["rollout/length"]
    names = ("correct_count", "unsolved_prompts", "judged_prompts", "samples", "tokens")
    counts = {f"rollout/{name}": total.pop(f"rollout/{name}") for name in names}
    means = {"rollout/reward": (total.pop("rewards"), total.pop("rewarded"))}
    means["rollout/accuracy"] = (counts["rollout/correct_count"], total.pop("counted"))
    means |= {f"reward/{name}": (total.pop(f"sum/{name}"), total.pop(f"given/{name}")) for name in rollout.parts}
    known = {name: value / number if number else math.nan for name, (value, number) in means.items()}
    if total.pop("thinking"):
        total["rollout/answer_tokens"] = tokens - total["rollout/thought_tokens"]
    else:
        del total["rollout/thought_tokens"], total["rollout/unclosed_thoughts"]
    prompts, shares_sum, squares = counts["rollout/judged_prompts"], total.pop("shares"), total.pop("squares")
    if prompts > 1:
        deviations = max(squares - shares_sum**2 / prompts, 0.0)
        known["rollout/accuracy_error"] = math.sqrt(deviations / (prompts - 1) / prompts)
    rates = {"rollout/entropy": nats / max(tokens, 1.0)}
    if seconds:
        rates["rollout/tokens_per_second"] = tokens / seconds
    return {name: value / count for name, value in total.items()} | known | counts | rates


def thought_counts(rollout: Rollout, tokenizer: Any) -> dict[str, Tensor]:
    """Return the tokens of all thoughts, and the numbers of completions that have some and whose thoughts never end."""
    thoughts: list[str] = []
    thinking = unclosed = 0
    for prompt, group in zip(rollout.prompts, rollout.completions, strict=True):
        begun = thoughts_in(prompt.prefill)
        for completion in group:
            texts = [
                thoughts_in(prompt.prefill + turn.text).removeprefix(begun).strip()
                for turn in completion.turns or (completion,)
            ]
            thoughts += filter(None, texts)
            thinking += any(texts)
            unclosed += ends_in_thoughts(prompt.prefill + completion.text)
    tokens = sum(map(len, tokenizer(thoughts, add_special_tokens=False).input_ids)) if thoughts else 0
    counts = {"rollout/thought_tokens": tokens, "rollout/unclosed_thoughts": unclosed, "thinking": thinking}
    return {name: torch.tensor(float(count)) for name, count in counts.items()}


def mixed_groups(scored: Scores | Rollout, by: str = "reward") -> list[int]:
    """Return the indices of mixed groups, whose completions differ in their rewards: the others have no signal.

    Args:
        by: `reward`, the weighted sum of all rewards; `correct`; or the name of one reward.
    """
    if by == "correct":
        values, known = scored.correct, scored.judged
    else:
        values = scored.rewards if by == "reward" else scored.parts[by]
        known = scored.rewarded & ~values.isnan()
    return [int(p) for p in (~degenerate(values, known)).flatten().nonzero().flatten()]


class GroupSummary(NamedTuple):
    """What all ranks know of a scored group.

    Args:
        sample_id: of its prompt.
        tokens: the input tokens that training will run; 0 = it has no gradient.
        is_mixed: whether it has a signal (`mixed_groups`).
        number: its place in the order of the groups that are trained on; None = it is not trained on.
    """

    sample_id: str
    tokens: int
    is_mixed: bool
    number: int | None


Summaries = list[list[GroupSummary]]
"""The groups of each rank, in the order of its rollout."""


def gather_summaries(rollout: Rollout, runs: Sequence[bool], by: str = "reward") -> Summaries:
    """Tell all ranks of the groups of a sampling round; return those of every rank. Collective: call it on every rank.

    Args:
        runs: for each of this rank's groups, whether training will run it (`RLVRModule.runs_groups`).
        by: as for `mixed_groups`.
    """
    mixed = {*mixed_groups(rollout, by)}
    return gather_objects(
        [
            GroupSummary(prompt.sample.id, group_tokens(rollout, p) * runs[p], p in mixed, p)
            for p, prompt in enumerate(rollout.prompts)
        ]
    )


def count_repeats(sample_ids: Iterable[str]) -> list[int]:
    """Return how often each sample occurs before its place."""
    seen: Counter[str] = Counter()
    repeats = []
    for sample_id in sample_ids:
        repeats.append(seen[sample_id])
        seen[sample_id] += 1
    return repeats


def count_mixed(groups: Summaries) -> int:
    """Return the number of mixed groups on all ranks."""
    return sum(group.is_mixed for there in groups for group in there)


def number_mixed(groups: Summaries, share: int, limit: int) -> Summaries:
    """Number the mixed groups in the order of the prompt stream; train on the first `limit` of them, and no others.

    The numbers do not depend on the number of ranks.

    Args:
        share: prompts per rank in one sampling round.
        limit: how many groups to keep, over all ranks.
    """
    places = sorted(
        (p // share, r, p % share) for r, there in enumerate(groups) for p, group in enumerate(there) if group.is_mixed
    )
    numbers = {(r, turn * share + p): number for number, (turn, r, p) in enumerate(places[:limit])}
    return [
        [group._replace(number=numbers.get((r, p))) for p, group in enumerate(there)] for r, there in enumerate(groups)
    ]


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
        rollout_logprobs=stack("rollout_logprobs"),
        rewards=torch.cat([first.rewards, second.rewards]),
        correct=torch.cat([first.correct, second.correct]),
        judged=torch.cat([first.judged, second.judged]),
        parts={name: torch.cat([part, second.parts[name]]) for name, part in first.parts.items()},
        details=first.details + second.details,
        statuses=first.statuses + second.statuses,
        repeats=first.repeats + second.repeats,
        versions=None if first.versions is None else stack("versions"),
        stale_cache=None if first.stale_cache is None else stack("stale_cache"),
        reference_rewards=None
        if first.reference_rewards is None or second.reference_rewards is None
        else torch.cat([first.reference_rewards, second.reference_rewards]),
    )


Place = tuple[int, int]
"""A process and the index of a group on it."""


def balance(
    rollout: Rollout, groups: Summaries, minibatches: int, fixed: int,
    cut: Callable[[Sequence[Any]], Pixels] | None = None,
) -> Rollout:  # fmt: skip
    """Redistribute groups across ranks by token count; return this rank's. Collective: call it on every rank.

    Args:
        groups: of all ranks.
        minibatches: `updates_per_rollout`.
        fixed: how many of the first process's first groups stay there.
        cut: makes the patches of images again, which are many times larger and therefore not sent.
    """
    if world_size() == 1:
        return rollout
    places = even_out(groups, minibatches, fixed)[rank()]
    light = take if cut is None else lambda rollout, p: without_patches(take(rollout, p))
    stay = {p for r, p in places if r == rank()}
    sent = gather_objects({p: light(rollout, p) for p in range(len(rollout.prompts)) if p not in stay})
    arrived = [take(rollout, p) if r == rank() else sent[r][p] for r, p in places]
    if cut is not None:
        arrived = [
            group if r == rank() else _with_pixels(group, lambda pixels: cut(pixels.images))
            for group, (r, _) in zip(arrived, places, strict=True)
        ]
    numbers = {p: groups[r][q].number for p, (r, q) in enumerate(places)}
    kept = {p: number for p, number in numbers.items() if number is not None}
    return replace(reduce(join, arrived), kept=None if rollout.kept is None else kept)


def without_patches(group: Rollout) -> Rollout:
    """Return a group whose images are only pictures."""
    return _with_pixels(group, lambda pixels: replace(pixels, inputs=()))


def _with_pixels(group: Rollout, change: Callable[[Pixels], Pixels]) -> Rollout:
    def changed(part: Any) -> Any:
        return part if part.pixels is None else replace(part, pixels=change(part.pixels))

    completions = [[changed(completion) for completion in row] for row in group.completions]
    return replace(group, prompts=[changed(prompt) for prompt in group.prompts], completions=completions)


def group_tokens(rollout: Rollout, p: int) -> int:
    """Return the input tokens of a group: its prompt once, and its completions."""
    return len(rollout.prompts[p].token_ids) + sum(len(c.token_ids) for c in rollout.completions[p])


def take(rollout: Rollout, p: int) -> Rollout:
    """Return a rollout of one group alone, with copies of its tensors: a view would be sent with its whole tensor."""
    rows, reference = slice(p * rollout.group_size, (p + 1) * rollout.group_size), rollout.reference_rewards
    return replace(
        rollout,
        prompts=[rollout.prompts[p]],
        completions=[rollout.completions[p]],
        token_ids=rollout.token_ids[rows].clone(),
        mask=rollout.mask[rows].clone(),
        rollout_logprobs=rollout.rollout_logprobs[rows].clone(),
        rewards=rollout.rewards[p, None].clone(),
        correct=rollout.correct[p, None].clone(),
        judged=rollout.judged[p, None].clone(),
        parts={name: part[p, None].clone() for name, part in rollout.parts.items()},
        details=rollout.details[p : p + 1],
        statuses=[rollout.statuses[p]],
        repeats=rollout.repeats[p : p + 1],
        versions=None if rollout.versions is None else rollout.versions[rows].clone(),
        stale_cache=None if rollout.stale_cache is None else rollout.stale_cache[rows].clone(),
        reference_rewards=None if reference is None else reference[p, None].clone(),
        kept=None,
    )


def even_out(groups: Summaries, minibatches: int, fixed: int) -> list[list[Place]]:
    """Swap groups between the fullest and the emptiest process, one minibatch after the other, while that evens them.

    A group is swapped for one of the same minibatch, or for one that is not trained on.

    Args:
        minibatches, fixed: as for `balance`.

    Returns:
        For each process, the place that each of its groups comes from.
    """
    places = [[(r, p) for p in range(len(there))] for r, there in enumerate(groups)]

    def tokens_of(r: int, minibatch: int | None) -> dict[int, int]:
        """Return the tokens of process r's groups in a minibatch, or of those that are not trained on, by place."""
        there = {p: groups[o][q] for p, (o, q) in enumerate(places[r])}
        minibatches_of = {p: group.number and group.number % minibatches for p, group in there.items()}
        return {p: group.tokens for p, group in there.items() if minibatches_of[p] == minibatch}

    for minibatch in range(minibatches):
        while True:
            load = [sum(tokens_of(r, minibatch).values()) for r in range(len(places))]
            full, empty = load.index(max(load)), load.index(min(load))
            apart = load[full] - load[empty]
            idle = dict.fromkeys(tokens_of(empty, None), 0)
            swaps = [
                (abs(apart - 2 * (more - less)), p, q)
                for p, more in tokens_of(full, minibatch).items()
                for q, less in (tokens_of(empty, minibatch) | idle).items()
                if (full or p >= fixed) and (empty or q >= fixed)
            ]
            left, p, q = min(swaps, default=(apart, 0, 0))
            if left >= apart:
                break
            places[full][p], places[empty][q] = places[empty][q], places[full][p]
    return places
