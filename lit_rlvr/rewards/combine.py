"""Scores a rollout: all rewards of all groups, their weighted sum, `correct`, and failed checks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.log import log
from lit_rlvr.common.paths import shown
from lit_rlvr.common.resuming import how_to_resume
from lit_rlvr.distributed.collectives import gather_objects
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Reward, check_rewards, own_weights, reward_weights_of
from lit_rlvr.types import Completion, Pair, Prompt, RewardResult, Sample, Status

Judgements = dict[str, list[RewardResult]]  # a reward's name -> its results, one per completion
SEVERITY: tuple[Status, ...] = ("unjudged", "ok", "parse_fail", "timeout", "error")
"""An unjudged reward leaves the completion to the others, so its status counts only where all are unjudged."""

NOT_JUDGED = RewardResult(0.0, None, "unjudged")
VALUES: dict[str, float] = {"error": 0.0, "unjudged": math.nan}
"""The values of results without a judgement."""

TORCH_SETTINGS = (torch.get_default_dtype, torch.is_grad_enabled, torch.get_default_device)
"""Settings that training reads and a reward could change."""


@dataclass(frozen=True)
class Scores:
    """The scores of P groups of G completions.

    Args:
        rewards: (P, G) float32, the weighted sum; a reward that failed on a completion or does not judge it adds 0.
        correct: (P, G) float32 in {0, 1}; 0 where not `has_correct`.
        has_correct: (P, G) bool, True = some reward says whether the answer is right, and none failed.
        parts: name -> (P, G) float32, each reward before its weight; NaN where it does not judge the completion.
        statuses: P lists of G, the worst status of each completion; "unjudged" where no reward judges it.
        failed: (P, G) bool, True = some reward has status "error".
        stopped: (P, G) bool, True = a limit stopped some reward before it could judge.
        details: P lists of G, name -> that reward's result.
        weights: name -> the reward's weight.
    """

    rewards: Tensor
    correct: Tensor
    has_correct: Tensor
    parts: dict[str, Tensor]
    statuses: list[list[Status]]
    failed: Tensor
    stopped: Tensor
    details: list[list[dict[str, RewardResult]]]
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def has_reward(self) -> Tensor:
        """(P, G) bool, False = a check failed or no reward judges the completion.

        Such a completion must be masked out of the loss and of its group's statistics.
        """
        judged = []
        for status in chain(*self.statuses):
            judged.append(status != "unjudged")
        return ~self.failed & torch.tensor(judged, dtype=torch.bool).reshape(self.failed.shape)


def score_rollout(rewards: Sequence[Reward], completions: list[list[Completion]], samples: list[Sample]) -> Scores:
    """Score P groups of G completions; `samples[p]` is the sample that group p answers.

    Raises:
        UserError: see `combine`.
    """
    width = len(completions[0]) if completions else 0
    pairs = []
    for group, sample in zip(completions, samples, strict=True):
        pairs += pairs_of(group, sample)
    return combine(rewards, judge(rewards, pairs), samples, width)


def pairs_of(group: Sequence[Completion], sample: Sample) -> list[Pair]:
    """Return a group's completions with a copy of their sample, which tells them from another group of the sample."""
    shared = copy(sample)
    return [(completion, shared) for completion in group]


def _score(reward: Reward, pairs: Sequence[Pair]) -> Sequence[RewardResult]:
    """Return a reward's results for some completions.

    Raises:
        UserError: it changed a setting of torch that training reads.
    """
    before = [get() for get in TORCH_SETTINGS]
    results = reward.score(pairs)
    for get, value in zip(TORCH_SETTINGS, before, strict=True):
        if get() != value:
            raise UserError(
                f"reward {reward.dotted_path} changed torch.{get.__name__}(), which training uses; restore the setting "
                "before it returns"
            )
    return results


def judge(rewards: Sequence[Reward], pairs: Sequence[Pair], whole_rollout: bool | None = None) -> Judgements:
    """Return the results of each reward for some completions, by the reward's name.

    A completion whose environment failed is not judged: all rewards get that failure. A reward that is not of the
    completion's row (`reward_weights_of`) does not judge it.

    Args:
        rewards: the rewards.
        pairs: completions, each with its sample.
        whole_rollout: only the rewards that judge whole rollouts (True), or only the others; None = all.

    Raises:
        UserError: a reward changed a setting of torch that training reads.
    """
    outcomes = {}
    for k, (completion, _) in enumerate(pairs):
        outcomes[k] = completion.outcome
    failures = {}
    for k, outcome in outcomes.items():
        if outcome and outcome.status in ("timeout", "error"):
            failures[k] = outcome
    weights = own_weights(rewards)
    sample_weights = {}
    for _, sample in pairs:
        sample_weights[id(sample)] = reward_weights_of(sample, weights)
    judgements: Judgements = {}
    for reward in rewards:
        if whole_rollout not in (None, reward.whole_rollout):
            continue
        indices = []
        for k, (_, sample) in enumerate(pairs):
            if k not in failures and reward.name in sample_weights[id(sample)]:
                indices.append(k)
        results = dict(zip(indices, _score(reward, [pairs[k] for k in indices]), strict=True))
        judgements[reward.name] = [results.get(k) or failures.get(k) or NOT_JUDGED for k in range(len(pairs))]
    return judgements


def _settle_correct(
    rewards: Sequence[Reward], results: Judgements, names: Sequence[tuple[str, ...]], width: int
) -> tuple[dict[str, list[RewardResult]], list[str]]:
    """Return the results, in which one reward of each completion says whether it is right, and its name (B of them).

    Args:
        rewards: the rewards.
        results: reward's name -> its P * G results, group by group.
        names: the names of the rewards that judge each of the P samples.
        width: G, the completions of each sample.
    """
    settled = {}
    for name, column in results.items():
        settled[name] = [*column]
    judging = [rewards[0].name] * len(names) * width
    rows_by_rewards: dict[tuple[str, ...], list[int]] = {}  # the rewards of a row -> its completions
    for b in range(len(judging)):
        rows_by_rewards.setdefault(names[b // width], []).append(b)
    rows_by_rewards.pop((), None)  # no reward judges these
    for own_names, own_rows in rows_by_rewards.items():
        columns = {}
        for name in own_names:
            columns[name] = [settled[name][b] for b in own_rows]
        own_rewards = []
        for reward in rewards:
            if reward.name in own_names:
                own_rewards.append(reward)
        source = _correct_source(own_rewards, columns)
        counts_ones = _counts_ones(next(reward for reward in rewards if reward.name == source), rewards)
        for b, result in zip(own_rows, _with_correct(source, columns[source], counts_ones), strict=True):
            judging[b] = source
            settled[source][b] = result
    return settled, judging


def combine(rewards: Sequence[Reward], results: Judgements, samples: Sequence[Sample], width: int) -> Scores:
    """Return scores of G = `width` completions of each of P samples from each reward's results for all P * G.

    One reward of each row says what is `correct`, the first that there is of these:

    1. the one with `correct_from`,
    2. the first that reports it,
    3. the first whose checks all failed,
    4. the first that may report it.

    Where it reports nothing:

    - if it reports `correct` for other completions, it counts as failed here (status "error");
    - if it does not judge this completion (status "unjudged"), the first other reward that reports it counts;
    - if it reports it nowhere, its value 1 is correct, unless it is known never to report it or another reward of the
      run does: then nothing says what is correct.

    Args:
        rewards: the rewards.
        results: reward's name -> its P * G results, group by group.
        samples: the P samples.
        width: G, the completions of each sample.

    Raises:
        UserError: no reward, two of the same name, or two marked `correct_from`.
    """
    check_rewards(rewards)
    stopped = []  # B
    for row_results in zip(*results.values(), strict=True):
        stopped.append(any(result.status == "timeout" and result.correct is None for result in row_results))
    groups = len(samples)
    weights = own_weights(rewards)
    sample_weights = [reward_weights_of(sample, weights) for sample in samples]  # P
    results, judging = _settle_correct(rewards, results, [tuple(named) for named in sample_weights], width)
    rows = [dict(zip(results, row_results, strict=True)) for row_results in zip(*results.values(), strict=True)]  # B
    worst: list[Status] = []  # B
    for row in rows:
        worst.append(max((result.status for result in row.values()), key=SEVERITY.index))

    def table(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).reshape(groups, width)  # (B,) -> (P, G)

    parts = {}
    for name, column in results.items():
        parts[name] = table([VALUES.get(result.status, result.value) for result in column])
    total = torch.zeros(groups, width)
    for name in weights:
        weight_by_prompt = torch.tensor([named.get(name, 0.0) for named in sample_weights])  # (P,)
        total = total + weight_by_prompt.reshape(groups, 1) * parts[name].nan_to_num()
    correct = []  # B
    for judgement in zip(rows, judging, worst, strict=True):
        correct.append(_correct(*judgement))
    return Scores(
        rewards=total,
        correct=table([float(bool(right)) for right in correct]),
        has_correct=table([float(right is not None) for right in correct]).bool(),
        parts=parts,
        statuses=[worst[p * width : (p + 1) * width] for p in range(groups)],
        failed=table([float(status == "error") for status in worst]).bool(),
        stopped=table([float(late) for late in stopped]).bool(),
        details=[rows[p * width : (p + 1) * width] for p in range(groups)],
        weights=weights,
    )


def _correct(row: dict[str, RewardResult], judging: str, status: Status) -> bool | None:
    """Return whether an answer is right: as the reward `judging` says, else the first other one that judges it.

    Args:
        row: each reward's result for the completion.
        judging: name of the reward that `correct` comes from.
        status: the worst of them.
    """
    if status == "error":
        return None
    for result in (row[judging], *row.values()):
        if result.correct is not None:
            return result.correct
    return None


def _correct_source(rewards: Sequence[Reward], results: Judgements) -> str:
    """Return the name of the reward that `correct` comes from."""
    marked = [reward.name for reward in rewards if reward.correct_from]
    reporting = []
    failed = []
    for name, column in results.items():
        if any(result.correct is not None for result in column):
            reporting.append(name)
        if column and all(result.status == "error" for result in column):
            failed.append(name)
    may_report = []
    for reward in rewards:
        if reward.reports_correct is not False:
            may_report.append(reward.name)
    # One that failed may report `correct` elsewhere.
    return next(chain(marked, reporting, failed, may_report), rewards[0].name)


def _counts_ones(source: Reward, rewards: Sequence[Reward]) -> bool:
    """Return whether the value 1 of a reward that reports no `correct` counts as correct."""
    if source.correct_from:
        return True
    reported = any(reward.reports_correct for reward in rewards if reward is not source)
    return source.reports_correct is not False and not reported


def _with_correct(name: str, column: list[RewardResult], counts_ones: bool) -> list[RewardResult]:
    """Set `correct` in the results of the reward that it comes from, wherever its check has not failed.

    Args:
        name: the reward's name.
        column: its results.
        counts_ones: if it reports no `correct`, its value 1 is correct.
    """
    if any(result.correct is not None for result in column):
        return [_reported(result) for result in column]
    if any(result.status == "ok" for result in column):
        _say_rule(name, counts_ones)
    if not counts_ones:
        return column
    results = []
    for r in column:
        results.append(r if r.status in VALUES else replace(r, correct=r.value == 1))
    return results


def _reported(result: RewardResult) -> RewardResult:
    if result.correct is not None or result.status in VALUES:
        return result
    if result.status == "timeout":  # it was stopped before it could report
        return replace(result, correct=False)
    return replace(result, value=0.0, status="error", detail=f"did not report `correct`; {result.detail}")


@lru_cache
def _say_rule(name: str, counts_ones: bool) -> None:
    if not counts_ones:
        log.info(
            "reward %r reports no `correct`: rows that it alone judges have no accuracy, and the curriculum leaves "
            "them as they are; `correct_from: true` counts its value 1 as correct",
            name,
        )
        return
    log.info(
        "reward %r reports no `correct` (accuracy, pass@k): its value 1 counts as correct; "
        "for another rule, set `correct_from: true` on the reward that decides, or let it return True or False, or "
        "RewardResult(value, correct=...)",
        name,
    )


def logged_metrics(rewards: Sequence[Reward]) -> dict[str, float]:
    """Return the means of what rewards logged since the last call, as `reward/<name>`, and forget it.

    What they logged only before is NaN, since Lightning would repeat its last value.

    Collective: call it on every rank.
    """
    logged: dict[str, list[float]] = {}
    for reward in rewards:
        for name, values in reward.metrics.items():
            logged.setdefault(f"reward/{name}", []).extend(values)
        reward.metrics = {name: [] for name in reward.metrics}
    ranks = gather_objects(logged)
    means = {}
    for name in dict.fromkeys(chain(*ranks)):
        values = []
        for metrics in ranks:
            values += metrics.get(name, [])
        if values:
            means[name] = sum(values) / len(values)
        else:
            means[name] = math.nan
    return means


def _failure_row(sample: Sample, completion: Completion, results: Mapping[str, RewardResult]) -> dict[str, Any]:
    """Return the row of `failed_rewards.jsonl` about a completion: its text, and each failed reward's reason."""
    reasons = {}
    for name, result in results.items():
        if result.status in ("error", "timeout"):
            reasons[name] = result.detail
    return {"id": sample.id, "source": sample.source, "completion": completion.text, "failed": reasons}


def stop_on_failures(
    prompts: list[Prompt],
    completions: list[list[Completion]],
    scores: Scores,
    limit: float,
    run_folder: Path,
    together: bool,
) -> None:
    """End the run if too many checks failed.

    That is more than a share `limit` of checks that failed or were stopped by a limit before they judged, or more than
    half of an iteration's checks that were stopped. Before that, save the completions whose checks failed to
    `failed_rewards.jsonl` in `run_folder`.

    Args:
        prompts: the P prompts.
        completions: P lists of G.
        scores: their scores.
        limit: the largest share of failed checks, in [0, 1].
        run_folder: the run's folder.
        together: an iteration, counted over all ranks; then collective: call it on every rank.

    Raises:
        UserError: too many checks failed; it names the reward, the first sample and the file.
    """
    lost = scores.failed | scores.stopped  # (P, G)
    late = torch.tensor([status == "timeout" for status in chain(*scores.statuses)]).reshape(lost.shape)
    counts = (int(lost.sum()), int((lost | late).sum()), scores.failed.numel())
    if together:
        ranks = gather_objects(counts)
    else:
        ranks = [counts]
    failed, with_late, total = (sum(numbers) for numbers in zip(*ranks, strict=True))
    bound = f"rollout.safeguards.max_failure_rate={limit}"
    if together and with_late > max(limit, 0.5) * total >= failed:
        lost = lost | late
        failed = with_late
        bound = "a half"
    elif failed <= limit * total:
        return
    if not lost.any():
        raise UserError(f"a reward failed on {failed} of {total} completions, all of them on another rank")
    rows = []
    for p, g in lost.nonzero().tolist():
        rows.append(_failure_row(prompts[p].sample, completions[p][g], scores.details[p][g]))
    path = run_folder / "failed_rewards.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    name, reason = next(iter(rows[0]["failed"].items()))
    if scores.failed.any():
        remedy = ""
    else:
        remedy = "; raise the limits that stopped it (cpu_seconds, wall_seconds, memory_mb)"
    raise UserError(
        f"reward {name!r} failed on {failed} of {total} completions, above {bound}; "
        f"first, on sample {rows[0]['id']}: {reason}{remedy}; all of them are in {shown(path)}; mend it, and "
        f"{how_to_resume()}"
    )
