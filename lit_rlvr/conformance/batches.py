"""The frozen batches, and the changes to a batch that must not change a loss.

The files in `data/` have the arrays that `lit-rlvr parity` takes, and for each published method its results:
`NAME/loss` () and `NAME/dlogp` (B, T), or `NAME/advantages` (P, G). `tests/conformance/freeze.py` writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
BATCHES = ("regular", "ragged", "on_policy")
"""Names of the frozen batches: ratios near and far from 1; rows without tokens, gaps, groups with equal rewards and
ratios up to e^12; all ratios 1."""
BATCH_TOKENS = ("logp", "old_logp", "ref_logp", "mask", "entropy", "rollout_logp", "objective_mask", "turns")

Cut = Sequence[Sequence[Sequence[int]]]
"""The rows of each micro-batch of each rank; every row is in exactly one."""


@dataclass
class Batch:
    """The arrays of a batch as tensors of one float type: row p * G + g is completion g of prompt p.

    Args:
        logp: (B, T) log-probabilities under the current policy.
        old_logp: (B, T) log-probabilities under the policy at the beginning of the iteration.
        ref_logp: (B, T) log-probabilities under the reference policy; None if the batch has none.
        mask: (B, T) bool, True = in the loss.
        rewards: (P, G) rewards.
        correct: (P, G) float in {0, 1}, whether the answer is right.
        reference_rewards: (P, G) rewards of the reference model's completions; None if the batch has none.
        lengths: (P, G) sampled tokens.
        max_tokens: T_max, the configured longest completion.
        entropy: (B, T) entropies of the policy at each position; None if the batch has none.
        rollout_logp: (B, T) log-probabilities at sampling time; None if the batch has none: those of `old_logp`.
        objective_mask: (B, T) bool, the tokens whose objective counts; None = all in the loss.
        turns: (B, T) long, the turn of each token, -1 where masked; None if the batch has none.
        advantages: (P, G) constants for a loss; None = the algorithm computes its own.
    """

    logp: Tensor
    old_logp: Tensor
    ref_logp: Tensor | None
    mask: Tensor
    rewards: Tensor
    correct: Tensor
    reference_rewards: Tensor | None
    lengths: Tensor
    max_tokens: int
    entropy: Tensor | None = None
    rollout_logp: Tensor | None = None
    objective_mask: Tensor | None = None
    turns: Tensor | None = None
    advantages: Tensor | None = None


_Batch = TypeVar("_Batch", bound=Batch)


@cache
def load_data(name: str) -> dict[str, np.ndarray]:
    """Load a file of `data/`; the arrays are read-only."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as data:
        arrays = {}
        for key in data.files:
            arrays[key] = data[key]
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def frozen_arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a frozen batch, without the results of the published methods."""
    arrays = {}
    for key, array in load_data(name).items():
        if "/" not in key:
            arrays[key] = array
    return arrays


def frozen_batch(name: str) -> Batch:
    """Return a frozen batch in float64."""
    tensors: dict[str, Any] = {}
    for key, array in frozen_arrays(name).items():
        tensors[key] = torch.tensor(array)
    max_tokens = int(tensors.pop("max_completion_length"))
    return Batch(**tensors, max_tokens=max_tokens, lengths=tensors["mask"].sum(1).view_as(tensors["rewards"]).double())


def map_batch(
    batch: _Batch,
    tokens: Callable[[Tensor], Tensor] = lambda x: x,
    groups: Callable[[Tensor], Tensor] = lambda x: x,
) -> _Batch:
    """Apply functions to the tensors of a batch; by default they leave them unchanged.

    Args:
        batch: the batch.
        tokens: (B, T) -> (B, T'), for log-probabilities, entropies and masks.
        groups: (P, G) -> (P, G), for rewards, lengths and advantages.
    """
    changed: dict[str, Any] = {}
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            changed[name] = (tokens if name in BATCH_TOKENS else groups)(value)
    return replace(batch, **changed)


def reorder(batch: _Batch, rows: Sequence[int]) -> _Batch:
    """Return the batch with completion `rows[i]` in row i; each group stays together."""
    return map_batch(batch, lambda x: x[list(rows)], lambda x: x.flatten()[list(rows)].view_as(x))


def to_float32(batch: _Batch) -> _Batch:
    """Return the batch in float32."""
    return map_batch(batch, *[lambda x: x.float() if x.is_floating_point() else x] * 2)


def equal_rewards(batch: _Batch) -> _Batch:
    """Return the batch with all completions right or all wrong in every group."""
    prompts, size = batch.rewards.shape
    right = (torch.arange(prompts)[:, None] % 2).expand(prompts, size).to(batch.rewards.dtype)  # (P, G)
    return replace(batch, rewards=right.clone(), correct=right.clone())


def shuffled_groups(batch: Batch) -> list[int]:
    """Return rows with the groups in another order, in which none keeps its place."""
    prompts, size = batch.rewards.shape
    groups = []
    for p in (*range(2, prompts), 1, 0):
        for g in range(size):
            groups.append(p * size + g)
    return groups


def shuffled_inside(batch: Batch) -> list[int]:
    """Return rows with each group's completions in an order of its own, in which none keeps its place."""
    prompts, size = batch.rewards.shape
    rows = []
    for p in range(prompts):
        for g in range(size):
            rows.append(p * size + (g + 1 + p % (size - 1)) % size)
    return rows


def even_cuts(rows: Sequence[int]) -> list[Cut]:
    """Cut rows into micro-batches of equal size on one rank: single rows, pairs, and six that mix groups."""
    single = [[row] for row in rows]
    pairs = []
    for k in range(0, len(rows), 2):
        pairs.append(rows[k : k + 2])
    return [[single], [pairs], [[rows[k::6] for k in range(6)]]]


def uneven_cuts(rows: Sequence[int]) -> list[Cut]:
    """Cut rows into micro-batches of different sizes on one rank."""
    return [[[rows[:7], rows[7:]]], [[rows[k::5] for k in range(5)]]]


def rank_cut(rows: Sequence[int]) -> Cut:
    """Divide rows over two ranks, each with two micro-batches."""
    half = len(rows) // 2
    quarter = len(rows) // 4
    return [[part[:quarter], part[quarter:]] for part in (rows[:half], rows[half:])]
