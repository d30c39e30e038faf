"""The layout of rows against a hand-made one, and the cutting of micro-batches."""

import random

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from lit_rlvr.policy.layout import Group, Rows, build_rows, cut_microbatches

CPU = torch.device("cpu")


def group(prompt: list[int], completions: list[list[int]]) -> Group:
    return Group(prompt, completions, torch.arange(len(prompt))[None])


def sees(rows: Rows) -> list[list[int]]:
    """(T, T) 0/1 of one shared row: which token (column) each token (row) attends to, by its layout."""
    layout, total = rows.segments, rows.input_ids.shape[1]
    assert layout is not None
    table = torch.zeros(total, total, dtype=torch.long)
    for p, position_ids in enumerate(layout.prompts.tolist()):
        for i, token in enumerate(position_ids):
            if layout.order[token] == p * len(position_ids) + i:  # not padding
                table[token, position_ids[: i + 1]] = 1
    for position_ids, owner, mask in zip(layout.completions, layout.owner, layout.mask[:, 0], strict=True):
        keys = torch.cat([layout.prompts[owner], position_ids])
        for query, seen in zip(position_ids.tolist(), mask, strict=True):
            if layout.order[query] >= layout.prompts.numel():  # not padding
                table[query, keys[seen]] = 1
    return table.tolist()


def test_a_completion_sees_its_prompt_and_itself() -> None:
    rows = build_rows([group([5, 6], [[7, 8, 9], [10, 11]])], True, CPU)
    # the last token of a completion is never an input: [5 6 | 7 8 | 10]
    assert (rows.input_ids.tolist(), rows.position_ids.tolist()) == ([[5, 6, 7, 8, 10]], [[0, 1, 2, 3, 2]])
    assert sees(rows) == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert (rows.target.tolist(), rows.row.tolist()) == ([7, 8, 9, 10, 11], [0] * 5)
    assert (rows.column.tolist(), rows.sequence.tolist()) == ([1, 2, 3, 1, 4], [0, 0, 0, 1, 1])
    assert rows.position.tolist() == [0, 1, 2, 0, 1]


def test_groups_share_a_row_without_seeing_each_other_or_padding() -> None:
    rows = build_rows([group([5, 6], [[7, 8, 9], [1]]), group([4], [[3, 2]])], True, CPU)
    assert (rows.input_ids.tolist(), rows.position_ids.tolist()) == ([[5, 6, 4, 7, 8, 3]], [[0, 1, 0, 2, 3, 1]])
    assert sees(rows) == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 1, 0, 0, 1],
    ]
    assert rows.column.tolist() == [1, 3, 4, 1, 2, 5]
    assert rows.segments is not None and sorted(rows.segments.order.tolist()) == [0, 1, 2, 4, 5, 6]


def test_without_a_shared_prefix_each_completion_has_its_row() -> None:
    rows = build_rows([group([5, 6], [[7, 8, 9], []]), group([4], [[3]])], False, CPU)
    assert rows.input_ids.tolist() == [[5, 6, 7, 8], [5, 6, 0, 0], [4, 0, 0, 0]]
    assert rows.attend is not None and rows.attend.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3]] * 3
    assert (rows.row.tolist(), rows.column.tolist()) == ([0, 0, 0, 2], [1, 2, 3, 0])
    assert rows.sequence.tolist() == [0, 0, 0, 2] and rows.target.tolist() == [7, 8, 9, 3]


@pytest.mark.parametrize("shared", [True, False])
def test_positions_of_three_dimensions_go_on_behind_the_largest(shared: bool) -> None:
    position_ids = torch.tensor([[0, 1, 1, 2], [0, 1, 2, 3], [0, 5, 1, 2]])
    rows = build_rows([Group([1, 2, 3, 4], [[5, 6, 7], [8, 9]], position_ids)], shared, CPU)
    assert rows.position_ids.shape == (3, *rows.input_ids.shape)
    assert rows.position_ids[:, 0, :6].tolist() == [[0, 1, 1, 2, 6, 7], [0, 1, 2, 3, 6, 7], [0, 5, 1, 2, 6, 7]]
    assert (rows.position_ids[:, 0, 6:] if shared else rows.position_ids[:, 1, 4:5]).tolist() == [[6], [6], [6]]


@pytest.mark.parametrize(("shared", "ids"), [(True, [[5, 6, 8]]), (False, [[5, 0]] * 3 + [[6, 0], [6, 8], [6, 0]])])
def test_empty_completions_have_no_target_but_keep_their_number(shared: bool, ids: list[list[int]]) -> None:
    rows = build_rows([group([5], [[], [7], []]), group([6], [[], [8, 9], []])], shared, CPU)
    assert (rows.input_ids.tolist(), rows.target.tolist()) == (ids, [7, 8, 9])
    assert rows.sequence.tolist() == [1, 4, 4]


def cost(batch: list[int], prompts: list[int], lengths: list[int], group_size: int, shared: bool) -> int:
    """Input tokens of a micro-batch, including padding, from its layout."""
    owners = sorted({i // group_size for i in batch})
    members = [(p, [i for i in batch if i // group_size == p]) for p in owners]
    groups = [group([1] * prompts[p], [[2] * lengths[i] for i in chosen]) for p, chosen in members]
    return build_rows(groups, shared, CPU).input_ids.numel()


@settings(max_examples=150, deadline=None)
@example(6381, True, 12)  # two pieces of a group with another's between them
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 120))
def test_cuts_keep_every_row_once_and_the_budget(seed: int, shared: bool, budget: int) -> None:
    draw = random.Random(seed)
    group_size = draw.randint(1, 5)
    prompts = [draw.randint(1, 12) for _ in range(draw.randint(1, 6))]
    lengths = [draw.choice([0, 1, 2, 5, 20]) for _ in range(len(prompts) * group_size)]
    rows = sorted(draw.sample(range(len(lengths)), draw.randint(0, len(lengths))))
    batches = cut_microbatches(prompts, lengths, rows, group_size, budget, shared)
    assert sorted(i for batch in batches for i in batch) == rows
    for batch in batches:
        assert batch
        assert len(batch) == 1 or cost(batch, prompts, lengths, group_size, shared) <= budget
        owners = [i // group_size for i in batch]  # rows of one prompt stand together, to share one row
        assert not shared or [p for k, p in enumerate(owners) if k == 0 or owners[k - 1] != p] == list(
            dict.fromkeys(owners)
        )


def test_a_group_stays_whole_while_it_fits_and_is_split_by_completions_when_not() -> None:
    # prompt 10, four completions of 11: the row is 10 + 4 * 10 = 50
    assert cut_microbatches([10], [11] * 4, [0, 1, 2, 3], 4, 50, True) == [[0, 1, 2, 3]]
    split = cut_microbatches([10], [11] * 4, [0, 1, 2, 3], 4, 49, True)
    assert split == [[3], [0, 1, 2]] and len(split) == 2
    assert sorted(cut_microbatches([10], [11] * 4, [0, 1, 2, 3], 4, 5, True)) == [[0], [1], [2], [3]]
