"""How prompts and completions are laid out as model inputs, and how micro-batches are cut.

With a shared prefix a row is a whole group, `[prompt][c1]...[cG]`: each completion attends to the prompt
and to itself, and its positions continue the prompt's, so the prompt is computed once per group. With one
completion per row it is the same layout with G = 1. The last token of a completion is never an input:
nothing is predicted from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Segments = tuple[Sequence[int], Sequence[Sequence[int]]]  # a prompt's tokens and its completions' tokens


@dataclass
class Rows:
    """Model inputs of R rows of length L, and where the completion tokens' predictions stand in them.

    Args:
        input_ids: (R, L) long. position_ids: (R, L) long.
        attention_mask: (R, 1, L, L) bool, True = attend; the diagonal is in, so that padding is not all masked.
        row, column: (N,) long: the hidden state that predicts completion token n.
        target: (N,) long: that token.
        sequence, position: (N,) long: which completion (in the order given) it belongs to, and where in it.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    row: Tensor
    column: Tensor
    target: Tensor
    sequence: Tensor
    position: Tensor


def build_rows(groups: Sequence[Segments], device: torch.device) -> Rows:
    """Lay out one row per group. Completions of length 0 give no position and no target."""
    widths = [len(prompt) + sum(max(len(c) - 1, 0) for c in completions) for prompt, completions in groups]
    shape = (len(groups), max(widths))
    input_ids = torch.zeros(shape, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    segment = torch.full(shape, -1)  # -1 padding, 0 prompt, k the k-th completion
    row: list[int] = []
    column: list[int] = []
    target: list[int] = []
    sequence: list[int] = []
    position: list[int] = []
    number = 0
    for r, (prompt, completions) in enumerate(groups):
        start = len(prompt)
        input_ids[r, :start] = torch.tensor(prompt)
        position_ids[r, :start] = torch.arange(start)
        segment[r, :start] = 0
        for k, completion in enumerate(completions, 1):
            n = len(completion)
            inputs = max(n - 1, 0)
            span = slice(start, start + inputs)
            input_ids[r, span] = torch.tensor(completion[:inputs], dtype=torch.long)
            position_ids[r, span] = len(prompt) + torch.arange(inputs)
            segment[r, span] = k
            if n:
                row += [r] * n
                column += [len(prompt) - 1, *range(start, start + inputs)]
                target += list(completion)
                sequence += [number] * n
                position += range(n)
            start += inputs
            number += 1
    causal = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    key, query = segment[:, None, :], segment[:, :, None]  # (R, 1, L), (R, L, 1)
    attend = causal & (key >= 0) & ((key == 0) | (key == query))
    attend |= torch.eye(shape[1], dtype=torch.bool)
    tensors = [torch.tensor(values, dtype=torch.long) for values in (row, column, target, sequence, position)]
    return Rows(*(t.to(device) for t in (input_ids, position_ids, attend[:, None], *tensors)))


def cut_microbatches(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    rows: Sequence[int],
    group_size: int,
    budget: int,
    shared_prefix: bool,
) -> list[list[int]]:
    """Cut rows (indices p * group_size + g) into micro-batches of at most `budget` input tokens, padding included.

    Rows of one group stay together unless the group alone is over the budget; it is then split by
    completions. A single completion over the budget is a micro-batch of its own: nothing is ever dropped.
    """
    pieces: list[tuple[int, list[int]]] = []  # (row length, completions in it)
    for prompt in sorted({i // group_size for i in rows}):
        piece: list[int] = []
        length = prompt_lengths[prompt]
        for i in (i for i in rows if i // group_size == prompt):
            cost = max(completion_lengths[i] - 1, 0)
            if piece and (not shared_prefix or length + cost > budget):
                pieces.append((length, piece))
                piece, length = [], prompt_lengths[prompt]
            piece.append(i)
            length += cost
        pieces.append((length, piece))
    pieces.sort(key=lambda p: p[0])
    batches: list[list[int]] = []
    count = 0
    for length, piece in pieces:  # lengths rise, so this piece sets the width
        if batches and (count + 1) * length <= budget:
            batches[-1] += piece
            count += 1
        else:
            batches.append(list(piece))
            count = 1
    return batches
