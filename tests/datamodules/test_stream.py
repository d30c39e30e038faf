"""The order of prompts: pure in the cursor, complete, shared by ranks."""

from __future__ import annotations

from itertools import chain, islice

import pytest

from lit_rlvr.datamodules.reading.stream import (
    START_CURSOR,
    EvalLoader,
    PromptStream,
    TrainLoader,
    difference,
    prompt_hashes,
)
from lit_rlvr.errors import UserError
from lit_rlvr.types import Prompt, Sample


def prompts(count: int) -> list[Prompt]:
    return [Prompt(Sample(str(i), f"p{i}", "a"), [i]) for i in range(count)]


def ids(batch: list[Prompt]) -> list[int]:
    return [int(prompt.sample.id) for prompt in batch]


def test_take_is_a_pure_function_of_the_cursor():
    stream = PromptStream(prompts(10), seed=1, run_seed=2)
    first, cursor = stream.take(4, START_CURSOR)
    stream.take(25, cursor)
    again, same = PromptStream(prompts(10), seed=1, run_seed=2).take(4, START_CURSOR)
    assert (ids(again), same) == (ids(first), cursor)
    assert ids(stream.take(4, START_CURSOR)[0]) == ids(first)
    assert START_CURSOR == {"epoch": 0, "position": 0}


def test_every_epoch_is_a_complete_fresh_permutation_across_boundaries():
    stream = PromptStream(prompts(10), seed=0)
    taken, cursor = [], START_CURSOR
    for _ in range(10):  # 30 prompts in steps of 3, which does not divide 10
        batch, cursor = stream.take(3, cursor)
        taken += ids(batch)
    epochs = [taken[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(10))
    assert cursor == {"epoch": 3, "position": 0}


@pytest.mark.parametrize("stop", range(7))
def test_resuming_at_any_batch_equals_the_uninterrupted_order(stop: int):
    stream = PromptStream(prompts(10), seed=3)

    def run(steps: int, cursor: dict[str, int]) -> tuple[list[list[int]], dict[str, int]]:
        seen: list[list[int]] = []
        committed = [cursor]
        loader = TrainLoader(stream, 4, lambda: committed[0])
        while len(seen) < steps:
            for batch in islice(loader, steps - len(seen)):
                seen.append(ids(batch.prompts))
                committed[0] = batch.cursor  # after training on it
        return seen, committed[0]

    whole, end = run(7, START_CURSOR)
    head, cursor = run(stop, START_CURSOR)
    tail, resumed_end = run(7 - stop, cursor)
    assert head + tail == whole and resumed_end == end
    assert sorted([*chain(*whole)][:20]) == sorted([*range(10), *range(10)])  # the remainder is not dropped


def test_a_loader_runs_on_without_commits_and_never_moves_the_committed_cursor():
    committed = dict(START_CURSOR)
    loader = TrainLoader(PromptStream(prompts(9), seed=0), 3, lambda: committed)
    assert len(loader) == 3
    assert sorted(chain(*(ids(batch.prompts) for batch in loader))) == list(range(9))
    assert committed == START_CURSOR
    assert ids(next(iter(loader)).prompts) == ids(next(iter(loader)).prompts)


def test_an_epoch_of_sft_has_every_prompt():
    batches = list(TrainLoader(PromptStream(prompts(10), seed=0), 8, lambda: START_CURSOR, covers_all=True))
    assert {*chain(*(ids(batch.prompts) for batch in batches))} == {*range(10)} and len(batches) == 2
    assert len(TrainLoader(PromptStream(prompts(16), seed=0), 8, lambda: START_CURSOR, covers_all=True)) == 2


def test_the_next_batch_follows_prompts_that_training_took_by_itself():
    stream = PromptStream(prompts(12), seed=0)
    committed = [START_CURSOR]
    batches = iter(TrainLoader(stream, 3, lambda: committed[0]))
    first = next(batches)
    extra, committed[0] = stream.take(4, first.cursor)
    second = next(batches)
    assert ids(first.prompts) + ids(extra) + ids(second.prompts) == stream.order(0)[:10]


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_slices_are_the_one_rank_batch(world: int):
    stream = PromptStream(prompts(20), seed=5)
    whole = list(TrainLoader(stream, 8, lambda: START_CURSOR))
    parts = [list(TrainLoader(stream, 8, lambda: START_CURSOR, rank, world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        assert [*chain(*(ids(part[step].prompts) for part in parts))] == ids(batch.prompts)
        assert all(part[step].cursor == batch.cursor for part in parts)
        assert all(len(part[step]) == 8 // world for part in parts)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="prompts_per_rollout=9 is not divisible by the 2 processes"):
        TrainLoader(PromptStream(prompts(20), seed=0), 9, lambda: START_CURSOR, 0, 2)
    with pytest.raises(UserError, match="3 training prompts, fewer than prompts_per_rollout=4"):
        TrainLoader(PromptStream(prompts(3), seed=0), 4, lambda: START_CURSOR)
    with pytest.raises(UserError, match="no training prompt"):
        PromptStream([], seed=0)


@pytest.mark.parametrize("count,world", [(11, 2), (8, 2), (5, 4), (7, 1)])
def test_evaluation_sees_every_prompt_once_in_as_many_batches_on_all_ranks(count: int, world: int):
    loaders = [EvalLoader(prompts(count), 4, "toy", rank, world) for rank in range(world)]
    assert len({len(list(loader)) for loader in loaders}) == 1
    assert all(len(list(loader)) == len(loader) for loader in loaders)
    seen = [[i for batch in loader for i in ids(batch.prompts)] for loader in loaders]
    assert seen == [list(range(count))[rank::world] for rank in range(world)]
    assert all(len(batch) <= 4 // world and batch.name == "toy" for loader in loaders for batch in loader)


def test_an_evaluation_batch_is_rounded_up_to_the_ranks():
    assert [len(batch) for batch in EvalLoader(prompts(6), 3, "toy", 0, 2)] == [2, 1]


def test_aliases_are_part_of_the_fingerprint_and_change_no_other():
    def hashes(*references: str) -> dict[str, str]:
        return prompt_hashes([Prompt(Sample("1", "p", references[0], aliases=references[1:]), [1])])

    assert hashes("a")["answers"] == "bf5d3affb73efd2e", "the fingerprint of checkpoints without aliases"
    assert difference(hashes("a"), hashes("a", "b")) == "the reference answers"
    assert hashes("a", "b") != hashes("b", "a") and hashes("a", "b") != hashes('["a", "b"]')
