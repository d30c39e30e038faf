"""Scored completions of many prompts as tensors, and the choice of groups to train on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.sampling import Sampling
from lit_rlvr.types.completions import Completion
from lit_rlvr.types.results import RewardResult, Status, recorded_places
from lit_rlvr.types.samples import Prompt


@dataclass
class PromptBatch:
    """A batch of P prompts from a DataModule's loader.

    The rollout callback sets `rollout`, `greedy` and `demonstrations`; a source that takes further prompts moves
    `cursor`, and it sets `successes`.

    Args:
        prompts: this rank's P prompts.
        cursor: the loader's position after this batch ({"epoch", "position"}); training commits it, so checkpoints
            always name the next unseen prompt.
        name: the data set's name in metrics (`val/<name>/...`).
        rollout: the scored completions; None before the callback fills it.
        greedy: in validation, one greedy completion of each prompt, if the settings ask for it.
        demonstrations: in validation of a module that trains on the data's own completions, these; a rank without
            prompts has one of another prompt, because scoring with sharded weights needs all ranks.
        successes: in training, sample id -> right completions on all ranks, and those that count in accuracies.
    """

    prompts: list[Prompt]
    cursor: dict[str, int] = field(default_factory=dict)
    name: str = ""
    rollout: Rollout | None = None
    greedy: Rollout | None = None
    demonstrations: Rollout | None = None
    successes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class GroupSelection:
    """The number of mixed groups that an iteration needs, and whether it trains on others.

    Args:
        min_mixed_fraction: the smallest number of mixed groups, as a share of the prompts; above 0, further prompts are
            sampled until there are that many (dynamic sampling: DAPO, eq. 11).
        max_rounds: most batches of prompts that an iteration samples; then it trains on the groups it has.
        only_mixed: train on no other groups.
        by: what differs within a mixed group: the `reward` (the weighted sum), `correct`, or the reward of this name.
    """

    min_mixed_fraction: float = 0.0
    max_rounds: int = 10
    only_mixed: bool = False
    by: str = "reward"

    def num_needed(self, num_prompts: int) -> int:
        """Return the number of mixed groups that an iteration on so many prompts needs."""
        return math.ceil(self.min_mixed_fraction * num_prompts)


@dataclass
class Rollout:
    """P prompts with G scored completions each, on this rank.

    Row p * G + g of a (B, T) tensor is completion g of prompt p; completions are right-padded.

    `GroupSampler` builds it. Then the source sets `repeats`, `kept`, `reference_rewards` and, where weights are older,
    `versions` and `stale_cache`; the callback sets `is_unrewarded`, and `train` sets `advantages`. Only a replay writes
    another field, `mask`.

    Args:
        prompts: the P prompts.
        completions: P lists of G.
        token_ids: (B, T) long, padded with 0.
        mask: (B, T) bool, True = in the loss (EOS is in; padding, observations, failed checks, completions
            without a reward unless there is a teacher, and with `mask_truncated` truncated ones are not).
        rollout_logprobs: (B, T) float, log-probabilities at sampling time, 0 where padded or observed.
        rewards: (P, G) float, the weighted sum of all rewards; where not `has_reward`, the mean of the group's others.
        correct: (P, G) float in {0, 1}, or the mean of the group's others where not `has_correct`; never inferred from
            the reward.
        has_correct: (P, G) bool, True = a reward says whether the answer is correct.
        parts: name -> (P, G) float, each reward before its weight; NaN where it does not judge, 0 if its check failed.
        statuses: P lists of G, the worst status of each completion.
        sampling: the engine's sampling settings.
        exact: True if the engine's log-probabilities equal the trainer's up to rounding.
        reference_rewards: (P, G) float, rewards of the reference model's completions, NaN where it has none; None
            without them.
        advantages: (P, G) float, which the algorithm fills in.
        kept: the groups to train on, numbered over all ranks, if dynamic sampling dropped some; None = all.
        weights: name -> the weight of each of `parts`, where a row does not give another.
        details: P lists of G, name -> that reward's result; [] = they are unknown (a replay).
        repeats: how often each prompt occurred earlier in the iteration.
        versions: (B, T) long, the version of the weights (optimizer steps taken) that sampled each token; None without
            training.
        stale_cache: (B, T) bool, True for tokens that follow keys and values which older weights may have made, so
            that fresh scoring gives them another log-probability; None = there are none.
        is_unrewarded: no completion has a reward, on any rank, and there is no teacher: nothing can be trained on.
        is_demonstration: the completions are the data's own, so that no `rollout_logprobs` are known.
    """

    prompts: list[Prompt]
    completions: list[list[Completion]]
    token_ids: Tensor
    mask: Tensor
    rollout_logprobs: Tensor
    rewards: Tensor
    correct: Tensor
    has_correct: Tensor
    parts: dict[str, Tensor]
    statuses: list[list[Status]]
    sampling: Sampling
    exact: bool = False
    reference_rewards: Tensor | None = None
    advantages: Tensor | None = None
    kept: dict[int, int] | None = None
    weights: dict[str, float] = field(default_factory=dict)
    details: list[list[dict[str, RewardResult]]] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    versions: Tensor | None = None
    stale_cache: Tensor | None = None
    is_unrewarded: bool = False
    is_demonstration: bool = False

    @property
    def unreadable(self) -> dict[str, Tensor]:
        """Name -> (P, G) bool, True = that reward found no answer to judge (status "parse_fail")."""
        unreadable = {}
        for name in self.parts if self.details else ():
            statuses = []
            for group in self.details:
                statuses.append([row[name].status == "parse_fail" for row in group])
            unreadable[name] = self._table(statuses).bool()
        return unreadable

    @classmethod
    def unscored(
        cls, prompts: list[Prompt], completions: list[list[Completion]], sampling: Sampling, group_size: int = 1
    ) -> Rollout:
        """Return a rollout without rewards, for callers that need only log-probabilities.

        Args:
            prompts: the P prompts.
            completions: P lists of `group_size`; P may be 0.
            sampling: the sampling settings.
            group_size: G, the completions of each prompt.
        """
        token_ids, mask, logprobs = pad_completions(completions)
        shape = len(prompts), group_size
        return cls(
            prompts=prompts,
            completions=completions,
            token_ids=token_ids,
            mask=mask,
            rollout_logprobs=logprobs,
            rewards=torch.zeros(shape),
            correct=torch.zeros(shape),
            has_correct=torch.zeros(shape, dtype=torch.bool),
            parts={},
            statuses=[["ok"] * group_size for _ in prompts],
            sampling=sampling,
        )

    @property
    def group_size(self) -> int:
        """G, the completions of each prompt."""
        return int(self.rewards.shape[1])

    @property
    def known_correct(self) -> Tensor:
        """(P, G) float: 1 for completions that a reward calls right, else 0."""
        return self.correct * self.has_correct

    @property
    def in_accuracy(self) -> Tensor:
        """(P, G) bool: True for completions that count in accuracies: those that a reward calls right or wrong.

        A failed check counts as wrong.
        """
        return (
            self.has_correct | self._table([[status == "error" for status in group] for group in self.statuses]).bool()
        )

    @property
    def has_reward(self) -> Tensor:
        """(P, G) bool: True for completions with a reward, False if a check failed or no reward judges it."""
        values = []
        for group in self.statuses:
            values.append([status not in ("error", "unjudged") for status in group])
        return self._table(values).bool()

    def record(self, p: int, g: int, digits: int | None = None) -> dict[str, Any]:
        """Return a completion's judgement as the files of a run hold it; a missing reward is null.

        Args:
            p: the index of the prompt.
            g: the index of the completion in its group.
            digits: decimals of the numbers; None = all.
        """
        has_reward = bool(self.has_reward[p, g])
        places = {}
        if self.details:
            places = recorded_places(self.details[p][g])
        return {
            "reward": _rounded(self.rewards[p, g], digits) if has_reward else None,
            "correct": bool(self.correct[p, g]) if self.has_correct[p, g] else None,
            "status": self.statuses[p][g],
            "advantage": _rounded(self.advantages[p, g], digits)
            if has_reward and self.advantages is not None
            else None,
            **places,
        }

    @property
    def lengths(self) -> Tensor:
        """(P, G) float: sampled tokens of each completion, EOS included."""
        return self._table([[c.length for c in group] for group in self.completions])

    @property
    def turns(self) -> Tensor:
        """(B, T) long: the turn of the episode that each sampled token belongs to, from 0; -1 elsewhere."""
        _, sampled, _ = pad_completions(self.completions)
        begins = sampled.clone()
        begins[:, 1:] &= ~sampled[:, :-1]
        turns = begins.cumsum(1) - 1
        for row, completion in zip(turns, self._rows, strict=True):
            for k, turn in enumerate(completion.turns):
                row[slice(*turn.span)] = k
        return turns.masked_fill(~sampled, -1)

    @property
    def turn_rewards(self) -> Tensor:
        """(B, T) float: the reward of the turn that each sampled token belongs to, before its weight; 0 without one."""
        values = []
        for completion in self._rows:
            values.append([turn.reward or 0.0 for turn in completion.turns])
        return self._of_turns(values)

    @property
    def states(self) -> Tensor | None:
        """(B, T) long: the state before the turn of each sampled token, by a number from 0 within its group; None if a
        completion does not name its turns, as in a record of an earlier version."""
        for turns, completion in zip(self.turns, self._rows, strict=True):
            if int(turns.max()) >= max(len(completion.turns), 1):
                return None
        values: list[list[float]] = []
        for group in self.completions:
            numbers = {"": 0}
            for completion in group:
                values.append([numbers.setdefault(turn.state, len(numbers)) for turn in completion.turns])
        return self._of_turns(values).long()

    def observed_in(self, completion: Completion) -> list[bool]:
        """Return for each token of a completion whether the environment wrote it.

        These are the tokens between two turns, with those of the chat template, but no placeholders of images.
        """
        banned = set(self.sampling.banned_token_ids)
        is_observed = [False] * len(completion.token_ids)
        spans = []
        for turn in completion.turns:
            if turn.observed:
                spans.append(turn.observed)
        if not spans:
            for before, after in pairwise(completion.turns):
                spans.append((before.span[1], after.span[0]))
        for start, end in spans:
            for t in range(start, end):
                is_observed[t] = completion.token_ids[t] not in banned
        return is_observed

    @property
    def observed(self) -> Tensor:
        """(B, T) bool: True for the tokens that `observed_in` names."""
        observed = torch.zeros(self.token_ids.shape, dtype=torch.bool)
        for row, completion in zip(observed, self._rows, strict=True):
            row[: len(completion.token_ids)] = torch.tensor(self.observed_in(completion), dtype=torch.bool)
        return observed

    @property
    def _rows(self) -> list[Completion]:
        return list(chain.from_iterable(self.completions))

    def _of_turns(self, values: Sequence[Sequence[float]]) -> Tensor:
        """Return for each sampled token (B, T) the value of its turn; 0 elsewhere, and in completions without turns."""
        turns = self.turns
        spread = torch.zeros(turns.shape)
        for row, own_turns, of_row in zip(spread, turns, values, strict=True):
            for k, value in enumerate(of_row):
                row[own_turns == k] = value
        return spread

    @property
    def truncated(self) -> Tensor:
        """(P, G) float in {0, 1}: 1 if the engine's finish reason is "length"."""
        return self._table([[c.truncated for c in group] for group in self.completions])

    def _table(self, values: Sequence[Sequence[float]]) -> Tensor:
        """Return P lists of G numbers or truth values as a (P, G) float tensor."""
        return torch.tensor(values, dtype=torch.float32).reshape(self.rewards.shape)


def _rounded(value: Tensor, digits: int | None) -> float:
    if digits is None:
        return float(value)
    return round(float(value), digits)


def pad_completions(completions: list[list[Completion]]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-pad P lists of G completions.

    Returns:
        token_ids (B, T) long, mask (B, T) bool (True = sampled by the model), rollout_logprobs (B, T) float; T is the
        longest completion, at least 1.
    """
    rows = list(chain.from_iterable(completions))
    width = max([1, *(len(row.token_ids) for row in rows)])
    token_ids = torch.zeros(len(rows), width, dtype=torch.long)
    logprobs = torch.zeros(len(rows), width)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        token_ids[i, : len(row.token_ids)] = torch.tensor(row.token_ids, dtype=torch.long)
        logprobs[i, : len(row.logprobs)] = torch.tensor(row.logprobs)
        mask[i, : len(row.token_ids)] = torch.tensor(row.from_model, dtype=torch.bool)
    return token_ids, mask, logprobs
