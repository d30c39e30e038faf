"""The sequences and tokens of an optimizer step, which its loss averages over.

They are counted once per step, over all ranks and before cutting micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import all_sum, index_tensor, to_device
from lit_rlvr.objectives import Aggregation, aggregation_weights, count_by_sequence
from lit_rlvr.options import Loss
from lit_rlvr.types import Rollout


@dataclass(frozen=True)
class Normalisers:
    """The numbers that the losses of a step's tokens are averaged over, on all ranks.

    Args:
        sequences: the sequences of the step, at least 1.
        tokens: its tokens in the loss, at least 1.
        places: (rows, T) which sequence of its row a token belongs to, on the device, if each is averaged over by
            itself; None = a row is one sequence.
    """

    sequences: float
    tokens: float
    places: Tensor | None


def count_normalisers(rollout: Rollout, rows: list[int], options: Loss, device: torch.device) -> Normalisers:
    """Return the normalisers of a step.

    Collective: call it on every rank.

    Args:
        rollout: the rollout of this rank.
        rows: this rank's rows in the step.
        options: `model.loss`.
        device: where the tensors go.
    """
    places = None
    if options.normalise_by == "sequence":
        places = places_in_rows(rollout, rows)
    sequences, tokens = count_sequences_and_tokens(rollout, rows, options.count_empty_rows, places)
    if places is not None:
        places = to_device(places, device)
    return Normalisers(sequences, tokens, places)


def places_in_rows(rollout: Rollout, rows: list[int]) -> Tensor:
    """Return which sequence of its row each token belongs to (rows, T) int64, from 0."""
    size = rollout.group_size
    places = torch.zeros(len(rows), rollout.mask.shape[1], dtype=torch.long)
    for row, i in enumerate(rows):
        end = 0
        for place, length in enumerate(rollout.completions[i // size][i % size].sequence_lengths):
            places[row, end : end + length] = place
            end += length
    return places


def count_sequences_and_tokens(
    rollout: Rollout, rows: list[int], count_empty_rows: bool, places: Tensor | None = None
) -> tuple[float, float]:
    """Return the sequences and the tokens of a step over all ranks, at least 1 of each.

    Collective: call it on every rank.

    Args:
        rollout: the rollout of this rank.
        rows: this rank's rows in the step.
        count_empty_rows: `loss.count_empty_rows`.
        places: (rows, T) which sequence of its row a token belongs to, if those with a token in the loss are counted;
            None = rows are counted.
    """
    mask = rollout.mask[rows]  # (rows, T)
    lengths = mask.sum(1)  # (rows,)
    if places is None:
        counted = (lengths > 0).long()
    else:
        counted = (count_by_sequence(mask.long(), places) > 0).sum(1)
    if count_empty_rows:
        counted = counted.clamp(min=1)
    sequences, tokens = all_sum(torch.stack([counted.sum(), lengths.sum()]).double()).tolist()
    return max(sequences, 1.0), max(tokens, 1.0)


def weigh_tokens(
    mask: Tensor,
    rollout: Rollout,
    rows: list[int],
    aggregation: Aggregation,
    normalisers: Normalisers,
    longest: int,
) -> Tensor:
    """Return the weight of each token (B, T) in the loss or in a term; 0 outside the step's rows.

    Args:
        mask: (B, T) bool, the tokens that have a weight.
        rollout: the rollout of this rank.
        rows: this rank's rows in the step.
        aggregation: how tokens are averaged.
        normalisers: those of the step.
        longest: the most such tokens that a completion can have.
    """
    index = index_tensor(rows, mask.device)
    weight = torch.zeros(mask.shape, device=mask.device)
    weight[index] = aggregation_weights(
        mask[index],
        rollout.group_size,
        aggregation,
        normalisers.sequences,
        normalisers.tokens,
        longest,
        normalisers.places,
    ).to(weight.dtype)
    return weight


@dataclass(frozen=True)
class ObservedTokens:
    """The tokens that an environment answered in a step's live rows, for a term that is a cost of these.

    Args:
        mask: (B, T) bool, the tokens.
        weight: (B, T) weight of each of them in the term, 0 elsewhere.
    """

    mask: Tensor
    weight: Tensor


def observed_tokens(
    rollout: Rollout,
    rows: list[int],
    aggregation: Aggregation,
    normalisers: Normalisers,
    device: torch.device,
) -> ObservedTokens:
    """Return the tokens that an environment answered in a step's live rows, weighted over those of all ranks.

    Collective: call it on every rank.

    Args:
        rollout: the rollout of this rank.
        rows: this rank's rows in the step.
        aggregation: how tokens are averaged.
        normalisers: those of the step.
        device: where the tensors go.
    """
    in_step = torch.zeros(len(rollout.mask), 1, dtype=torch.bool)
    in_step[rows] = True
    observed = rollout.observed & in_step & rollout.mask.any(1, keepdim=True)
    (tokens,) = all_sum(torch.tensor([observed.sum()], dtype=torch.float64)).tolist()
    mask = to_device(observed, device)
    longest = rollout.sampling.max_completion_tokens
    return ObservedTokens(
        mask, weigh_tokens(mask, rollout, rows, aggregation, replace(normalisers, tokens=tokens), longest)
    )
