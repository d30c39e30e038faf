"""The synthetic batch on which `check` measures properties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_rlvr.advantages import GroupBatch
from lit_rlvr.parity.batch import FrozenBatch, read_batch
from lit_rlvr.seeds import derive_seed

PROMPTS, SIZE, WIDTH, LONGEST = 6, 4, 9, 12
"""P, G, T and T_max of the batch."""


def identity(x: Tensor) -> Tensor:
    return x


def made_batch() -> FrozenBatch:
    """Make six groups of four completions in float64.

    Each group has right and wrong completions, with rewards in [0, 1]. Completions have 1 to 9 tokens, some with gaps
    like those of observations. Ratios are near and far from 1.
    """
    rng = np.random.default_rng(derive_seed("check"))
    rows = PROMPTS * SIZE
    mask = np.arange(WIDTH) < rng.integers(1, WIDTH + 1, rows)[:, None]
    mask[:, 2] &= np.arange(rows) % 3 > 0  # gaps
    correct = np.stack([rng.permutation(np.arange(SIZE) < 1 + p % (SIZE - 1)) for p in range(PROMPTS)]).astype(float)
    logp = -rng.exponential(1.0, (rows, WIDTH))
    spread = np.array([1e-4, 1e-3, 0.05, 0.5])[np.arange(rows) % 4]  # of the log-ratios
    away = rng.normal(size=logp.shape)
    away += 0.1 * np.sign(away)  # not at a clip of 0, where there is no derivative
    batch = read_batch(
        {
            "logp": logp,
            "old_logp": logp + spread[:, None] * away,
            "ref_logp": logp + 0.3 * rng.normal(size=logp.shape),
            "mask": mask,
            "rewards": 0.8 * correct + 0.2 * rng.random(correct.shape),
            "correct": correct,
            "reference_rewards": rng.integers(0, 2, correct.shape).astype(float),
            "max_completion_length": np.array(LONGEST),
        }
    )
    return replace(batch, entropy=torch.from_numpy(rng.uniform(0, 3, logp.shape)))


def map_batch(
    batch: FrozenBatch, tokens: Callable[[Tensor], Tensor] = identity, groups: Callable[[Tensor], Tensor] = identity
) -> FrozenBatch:
    """Apply functions to the arrays of a batch.

    Args:
        tokens: (B, T) -> (B, T'), for log-probabilities, entropies and the mask.
        groups: (P, G) -> (P, G), for the arrays of the groups.
    """
    arrays: dict[str, Any] = {name: tokens(getattr(batch, name)) for name in ("logp", "old", "ref", "mask", "entropy")}
    return replace(
        batch, **arrays, group=GroupBatch(**{name: groups(value) for name, value in vars(batch.group).items()})
    )


def reorder(batch: FrozenBatch, rows: Sequence[int]) -> FrozenBatch:
    """Return the batch with completion `rows[i]` in row i; each group stays together."""
    return map_batch(batch, lambda x: x[list(rows)], lambda x: x.flatten()[list(rows)].view_as(x))


def to_float32(batch: FrozenBatch) -> FrozenBatch:
    """Return the batch in float32."""
    return map_batch(batch, lambda x: x if x.dtype == torch.bool else x.float(), lambda x: x.float())
