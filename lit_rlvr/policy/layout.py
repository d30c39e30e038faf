"""Lays prompts and completions out as model inputs, and cuts micro-batches.

With a shared prefix, all groups of a micro-batch form one row without padding, first all prompts, then all completions:
`[prompt][prompt]...[c1]...[cG][c1]...`. Each completion attends to its prompt and to itself, and its positions
continue the prompt's, so a prompt is computed once per group. Otherwise each completion has its own row,
`[prompt][c]`, padded on the right. The last token of a completion is never an input, because nothing is predicted from
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_rlvr.distributed.collectives import to_device
from lit_rlvr.policy.attention import Method, Segments, lay_out


@dataclass
class Group:
    """A prompt and its completions.

    Args:
        prompt: token ids.
        completions: G lists of token ids.
        position_ids: (D, L) positions of the prompt's tokens, with D = 1, or 3 for multimodal rotary embeddings.
        scored: G lists, whether to predict each token of a completion; None = all.
        tails: positions (D, n) of completions that hold images; None for the others, which are text.
        routes: experts (L, K, k) of the inputs of each completion, prompt included, to replay; None = routers choose.
    """

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]
    position_ids: Tensor
    scored: Sequence[Sequence[bool]] | None = None
    tails: Sequence[Tensor | None] | None = None
    routes: Sequence[Tensor] | None = None

    def after(self, g: int, count: int) -> Tensor:
        """Return (D, count) positions of the first tokens of completion g, and of padding after it."""
        tail = None if self.tails is None else self.tails[g]
        if tail is None:
            return _text_after(self.position_ids, count)
        known = torch.cat([self.position_ids, tail[:, :count]], 1)
        return torch.cat([tail[:, :count], _text_after(known, max(count - tail.shape[1], 0))], 1)


@dataclass
class Rows:
    """Model inputs of R rows of length L, and where in them the N scored completion tokens are predicted.

    Args:
        input_ids: (R, L) long.
        position_ids: (R, L) long, or (3, R, L).
        attend: (R, L) bool, False = padding; None if `segments` defines the attention instead.
        segments: the layout of a row with shared prefixes; None with one completion per row.
        routes: (K, R * L, k) long, the experts to replay, -1 where routers choose; None = they choose everywhere.
        row, column: (N,) long: position of the hidden state that predicts completion token n.
        target: (N,) long: that token.
        sequence, position: (N,) long: which completion (in the order given) it belongs to, and where in it.
    """

    input_ids: Tensor
    position_ids: Tensor
    attend: Tensor | None
    segments: Segments | None
    routes: Tensor | None
    row: Tensor
    column: Tensor
    target: Tensor
    sequence: Tensor
    position: Tensor


def build_rows(
    groups: Sequence[Group], shared_prefix: bool, device: torch.device, method: Method | None = None
) -> Rows:
    """Lay groups out as rows of one forward pass; empty completions have no positions and no targets.

    Args:
        groups: prompts with their completions.
        shared_prefix: compute each prompt once for its group; False = one completion per row.
        device: where the tensors are made.
        method: of attention over shared prompts; None = the best for the device.
    """
    if shared_prefix:
        parts = _shared_row(groups, device, method)
    else:
        parts = _single_rows(groups)
    input_ids, position_ids, attend, segments, row, column = parts
    completions = [c for group in groups for c in group.completions]
    target = list(chain.from_iterable(completions))
    sequence = [k for k, c in enumerate(completions) for _ in c]
    position = [t for c in completions for t in range(len(c))]
    columns = torch.tensor([row, column, target, sequence, position], dtype=torch.long)  # (5, N)
    where = to_device(columns[:, torch.tensor(_scored(groups), dtype=torch.bool)], device)
    routes = _routes(groups, shared_prefix)
    return Rows(
        to_device(input_ids, device),
        to_device(position_ids, device),
        None if attend is None else to_device(attend, device),
        None if segments is None else segments.to(device),
        None if routes is None else to_device(routes, device),
        *where,
    )


def _routes(groups: Sequence[Group], shared_prefix: bool) -> Tensor | None:
    """Return the experts (K, R * L, k) of all inputs; a shared prompt has those of its first completion."""
    if groups[0].routes is None:
        return None
    like = groups[0].routes[0]
    rows = []
    for g in groups:
        rows.append((len(g.prompt), g.routes or [like.new_full((len(g.prompt), *like.shape[1:]), -1)]))
    if shared_prefix:
        prompts = []
        for length, routes in rows:
            prompts.append(routes[0][:length])
        laid = torch.cat(prompts + [route[length:] for length, routes in rows for route in routes])
    else:
        laid = pad_sequence([route for _, routes in rows for route in routes], True, -1.0).flatten(0, 1)
    return laid.movedim(1, 0)


def _scored(groups: Sequence[Group]) -> list[bool]:
    """Return whether each token of all completions is scored."""
    scored: list[bool] = []
    for group in groups:
        for g, completion in enumerate(group.completions):
            if group.scored is None:
                scored += [True] * len(completion)
            else:
                scored += group.scored[g]
    return scored


Layout = tuple[Tensor, Tensor, Tensor | None, Segments | None, list[int], list[int]]


def _shared_row(groups: Sequence[Group], device: torch.device, method: Method | None) -> Layout:
    tokens: list[int] = []
    pieces = [group.position_ids for group in groups]
    prompts: list[range] = []
    completions: list[tuple[int, range]] = []
    column: list[int] = []
    for group in groups:
        prompts.append(range(len(tokens), len(tokens) + len(group.prompt)))
        tokens += group.prompt
    for p, group in enumerate(groups):
        for g, completion in enumerate(group.completions):
            inputs = completion[:-1]
            span = range(len(tokens), len(tokens) + len(inputs))
            tokens += inputs
            pieces.append(group.after(g, len(inputs)))
            column += [prompts[p][-1], *span] if completion else []
            if inputs:
                completions.append((p, span))
    position_ids = _by_rows(torch.cat(pieces, 1)[:, None])
    segments = lay_out(prompts, completions, device, method)
    return torch.tensor([tokens]), position_ids, None, segments, [0] * len(column), column


def _single_rows(groups: Sequence[Group]) -> Layout:
    rows = []
    for group in groups:
        for g, c in enumerate(group.completions):
            rows.append((group, g, c))
    inputs = []
    for group, _, c in rows:
        inputs.append([*group.prompt, *c[:-1]])
    width = max(map(len, inputs))
    ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in inputs])
    lengths = torch.tensor([len(tokens) for tokens in inputs])
    position_ids = []
    for group, g, _ in rows:
        position_ids.append(torch.cat([group.position_ids, group.after(g, width - len(group.prompt))], 1))
    row = []
    for r, (_, _, c) in enumerate(rows):
        for _ in c:
            row.append(r)
    column = []
    for group, _, c in rows:
        for t in range(len(c)):
            column.append(len(group.prompt) - 1 + t)
    return ids, _by_rows(torch.stack(position_ids, 1)), torch.arange(width) < lengths[:, None], None, row, column


def _text_after(position_ids: Tensor, count: int) -> Tensor:
    """Return (D, count) positions of text: they continue from the largest before it, equal in all D dimensions."""
    return (position_ids.max() + 1 + torch.arange(count)).expand(len(position_ids), -1)


def _by_rows(position_ids: Tensor) -> Tensor:
    """Return the positions (D, R, L), or (R, L) if D = 1."""
    if len(position_ids) == 1:
        return position_ids[0]
    return position_ids


def cut_microbatches(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    rows: Sequence[int],
    group_size: int,
    budget: int,
    shared_prefix: bool,
) -> list[list[int]]:
    """Cut rows (indices p * group_size + g) into micro-batches of at most `budget` input tokens, padding included.

    Rows of a group stay together unless the group alone exceeds the budget; then its completions are split by length,
    so that those in padded blocks are alike. A single completion that exceeds the budget is a micro-batch of its own:
    nothing is dropped.

    Args:
        prompt_lengths: P, in tokens.
        completion_lengths: B, in tokens; row p * group_size + g.
        rows: those to run.
        group_size: completions of each prompt.
        budget: most input tokens.
        shared_prefix: count each prompt once for its group; False = once for each completion.
    """
    pieces: list[tuple[int, list[int]]] = []  # (tokens, completions in it)
    for prompt in sorted({i // group_size for i in rows}):
        piece: list[int] = []
        length = prompt_lengths[prompt]
        members = []
        for i in rows:
            if i // group_size == prompt:
                members.append(i)
        for i in sorted(members, key=lambda i: completion_lengths[i]):
            cost = max(completion_lengths[i] - 1, 0)
            if piece and (not shared_prefix or length + cost > budget):
                pieces.append((length, piece))
                piece = []
                length = prompt_lengths[prompt]
            piece.append(i)
            length += cost
        pieces.append((length, piece))
    pieces.sort(key=lambda p: p[0])
    batches: list[list[int]] = []
    used = 0
    for length, piece in pieces:
        # Separate rows are padded to the longest, which is this one: pieces are sorted by length.
        if shared_prefix:
            total = used + length
        elif batches:
            total = (len(batches[-1]) + 1) * length
        else:
            total = length
        if batches and total <= budget:
            batches[-1] += piece
            used = total
        else:
            batches.append(list(piece))
            used = length
    return [sorted(batch) for batch in batches]  # pieces of a group that end up together share their prompt
