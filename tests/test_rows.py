"""The layout of rows against a hand-made one, and the cutting of micro-batches."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlvr.rows import build_rows, cut_microbatches


def test_a_group_is_one_row_whose_completions_see_the_prompt_and_themselves() -> None:
    rows = build_rows([([5, 6], [[7, 8, 9], [10, 11]])], torch.device("cpu"))
    # the last token of a completion is never an input: [5 6 | 7 8 | 10]
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 10]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert rows.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert rows.target.tolist() == [7, 8, 9, 10, 11]
    assert rows.row.tolist() == [0] * 5
    assert rows.column.tolist() == [1, 2, 3, 1, 4]
    assert rows.sequence.tolist() == [0, 0, 0, 1, 1]
    assert rows.position.tolist() == [0, 1, 2, 0, 1]


def test_nothing_sees_padding_but_padding_itself() -> None:
    rows = build_rows([([5, 6], [[7, 8, 9]]), ([4], [[3]])], torch.device("cpu"))
    assert rows.input_ids.tolist() == [[5, 6, 7, 8], [4, 0, 0, 0]]
    assert rows.attention_mask[1, 0, :, 1:].int().tolist() == torch.eye(4)[:, 1:].int().tolist()
    assert rows.column.tolist() == [1, 2, 3, 0] and rows.row.tolist() == [0, 0, 0, 1]


def test_empty_completions_have_no_target_but_keep_their_number() -> None:
    rows = build_rows([([5], [[], [7], []]), ([6], [[], [8, 9], []])], torch.device("cpu"))
    assert rows.input_ids.tolist() == [[5, 0], [6, 8]]
    assert rows.target.tolist() == [7, 8, 9]
    assert rows.sequence.tolist() == [1, 4, 4]


def row_cost(prompt: int, completions: list[int]) -> int:
    return prompt + sum(max(c - 1, 0) for c in completions)


def cost(batch: list[int], prompts: list[int], lengths: list[int], group_size: int, shared: bool) -> int:
    """Input tokens of a micro-batch, padding included, counted from the rows it will be laid out as."""
    owners = sorted({i // group_size for i in batch})
    if shared:
        rows = [row_cost(prompts[p], [lengths[i] for i in batch if i // group_size == p]) for p in owners]
    else:
        rows = [row_cost(prompts[i // group_size], [lengths[i]]) for i in batch]
    return len(rows) * max(rows)


@settings(max_examples=150, deadline=None)
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
    whole = cut_microbatches([10], [11] * 4, [0, 1, 2, 3], 4, 50, True)
    assert whole == [[0, 1, 2, 3]]
    split = cut_microbatches([10], [11] * 4, [0, 1, 2, 3], 4, 49, True)
    assert split == [[3], [0, 1, 2]] and len(split) == 2
    single = cut_microbatches([10], [11] * 4, [0, 1, 2, 3], 4, 5, True)
    assert sorted(single) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("shared", [True, False])
def test_without_rows_there_is_no_microbatch(shared: bool) -> None:
    assert cut_microbatches([3, 4], [2] * 4, [], 2, 100, shared) == []
